"""Which arrangements are allowed, and what the user is told of the others."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.axes import pipeline_parallel
from parallel.axes.tensor_parallel import key_value_heads
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import check_device, resolve_layout

MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)


def resolve(world_size=8, micro=4, tokens=524_288, seq_len=2048, model=MODEL, **parallel):
    config = ParallelConfig(**parallel)
    return resolve_layout(config, BatchConfig(micro, tokens), model=model, seq_len=seq_len, world_size=world_size)


def test_data_takes_what_is_left():
    layout = resolve(world_size=16, tensor=2, pipeline=4)
    assert (layout.tensor, layout.pipeline, layout.data, layout.data_shard) == (2, 4, 2, 2)
    assert layout.micro_batches == 256 // (2 * 4)
    assert layout.stages == 4


def test_replicated_shards_over_one():
    assert resolve(zero_stage=0).data_shard == 1
    assert resolve(data_shard=4).data_shard == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor": 3}, "= 3 does not divide the 8 processes; start 6 or 9"),
        ({"tensor": 2, "data": 3}, "= 6 is not the number of processes, 8; start 6"),
        ({"tensor": 0}, "parallel.tensor = 0 must be at least 1"),
        (
            {"pipeline": 8, "schedule": "interleaved_1f1b"},
            "model.n_layers = 12 blocks do not fill 16 pipeline stages .*use at most 14 stages or at least 14 layers",
        ),
        (
            {"pipeline": 2, "schedule": "interleaved_1f1b", "stages_per_rank": 1},
            "stages_per_rank = 1 with parallel.schedule = 'interleaved_1f1b', .*use 2, or parallel.schedule = '1f1b'",
        ),
        ({"pipeline": 4, "split": (3, 3, 3)}, r"parallel.split = \[3, 3, 3\] names 3 stages, but .* gives 4"),
        ({"pipeline": 4, "split": (3, 3, 3, 4)}, r"adds up to 13 blocks, but model.n_layers = 12"),
        ({"pipeline": 4, "split": (6, 0, 3, 3)}, r"stage 1 of 4 would hold nothing"),
        ({"pipeline": 2, "split": (13, -1)}, r"stage 1 of 2 would hold nothing"),
        ({"pipeline": 2, "stages_per_rank": 2}, "= 2 with parallel.schedule = '1f1b', which runs 1 stage a rank; use"),
        (
            {"pipeline": 2, "stages_per_rank": 3, "schedule": "dualpipev"},
            "= 3 with parallel.schedule = 'dualpipev', which lays 2 stages a rank out as a V; use 2",
        ),
        ({"stages_per_rank": 0}, "parallel.stages_per_rank = 0 must be at least 1"),
        (
            {"pipeline": 4, "micro": 32, "world_size": 4, "tokens": 2048 * 7 * 32, "schedule": "dualpipev"},
            "needs at least as many micro-batches a step as stages: 7 .*nearest: 8, so batch.global_batch_tokens = "
            + str(2048 * 8 * 32),
        ),
        (
            {"pipeline": 4, "micro": 32, "world_size": 4, "tokens": 2048 * 9 * 32, "schedule": "interleaved_1f1b"},
            f"a multiple of its quotient by parallel.pipeline: 9 .*nearest: 8 or 10, so batch.global_batch_tokens = "
            f"{2048 * 8 * 32} or {2048 * 10 * 32}",
        ),
        ({"tensor": 8}, "model.n_heads = 12 is not divisible by parallel.tensor = 8; nearest that divide: 6 or 12"),
        ({"data_shard": 3}, "data-parallel size = 8 is not divisible by parallel.data_shard = 3"),
        ({"zero_stage": 0, "data_shard": 2}, "nothing is sharded"),
        (
            {"pipeline": 2, "schedule": "zbv_zero_bubble", "compile": True},
            "= true with parallel.schedule = 'zbv_zero_bubble': the backward of a compiled block cannot be split",
        ),
        (
            {"pipeline": 2, "schedule": "interleaved_zero_bubble", "recompute": "full"},
            "= 'full' with parallel.schedule = 'interleaved_zero_bubble': .* recompute a block once for each",
        ),
        (
            {"pipeline": 2, "schedule": "zbv_zero_bubble", "recompute": "selective"},
            "= 'selective' with parallel.schedule = 'zbv_zero_bubble': torch lets one backward pass use",
        ),
        ({"zero_stage": 3, "pipeline": 2}, "would save no memory there; use parallel.zero_stage = 1"),
        (
            {"tokens": 5000},
            "batch.global_batch_tokens = 5000 is not a multiple of data.seq_len = 2048; nearest: 4096 or 6144",
        ),
        ({"micro": 5}, "= 40 sequences does not divide the global batch of 256 sequences.*nearest that do: 4 or 8"),
        ({"micro": 0}, "batch.micro_batch_size = 0 must be at least 1"),
        ({"seq_len": 4096}, "data.seq_len = 4096 is longer than model.n_ctx = 2048"),
        (
            {"pipeline": 4, "micro": 64, "world_size": 4, "tokens": 262_144},
            "needs at least as many micro-batches a step as stages: 2 with parallel.pipeline = 4; nearest: 4",
        ),
        (
            {"async_tensor": True, "tensor": 2},
            "async_tensor = true with parallel.compile = false and parallel.tensor = 2",
        ),
        ({"async_tensor": True, "compile": True}, "compile = true and parallel.tensor = 1: it is the compiler"),
        ({"world_size": 6, "micro": 4, "pipeline": 1}, "global_batch_tokens nearest that does: 491520 or 540672"),
    ],
)
def test_mistakes_name_key_value_rule_and_nearest(keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**keys)


def test_a_head_counts_as_the_blocks_that_it_costs():
    """GPT-3 125M: the head costs 3.8 blocks, so one of four stages is the head alone, and of two the last has less."""
    assert resolve(world_size=4, pipeline=4, data=1).split == (4, 4, 4, 0)
    assert resolve(world_size=2, pipeline=2, data=1).split == (8, 4)
    assert [list(resolve(world_size=2, pipeline=2, data=1).layers_of(s))[:1] for s in (0, 1)] == [[0], [8]]


def test_blocks_are_spread_evenly_where_the_head_is_small_and_the_first_stage_gets_the_fewest():
    small_head = ModelConfig(vocab_size=128, n_ctx=2048, n_layers=6, d_model=768, n_heads=12)
    assert resolve(world_size=4, pipeline=4, data=1, model=small_head).split == (1, 2, 2, 1)
    assert resolve(world_size=4, pipeline=4, data=1, model=small_head, split=(3, 1, 1, 1)).split == (3, 1, 1, 1)


def test_stages_lie_in_rounds_or_as_a_v():
    rounds = resolve(world_size=3, pipeline=3, micro=2, tokens=2048 * 6, schedule="interleaved_1f1b", stages_per_rank=3)
    assert [rounds.stages_of(rank) for rank in range(3)] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    v = resolve(world_size=3, pipeline=3, data=1, schedule="zbv_zero_bubble")
    assert [v.stages_of(rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]
    assert resolve(world_size=2, schedule="zbv_zero_bubble").stages == 1


@pytest.mark.parametrize("schedule", [*pipeline_parallel.SINGLE, *pipeline_parallel.MULTI])
def test_a_number_of_micro_batches_is_refused_where_torch_refuses_it(schedule):
    """And the stages of a rank are those that torch's schedule looks for there."""
    for ranks in (2, 3, 4):
        for micro_batches in range(1, 4 * ranks):
            try:
                layout = resolve(
                    world_size=ranks, pipeline=ranks, micro=1, tokens=2048 * micro_batches, schedule=schedule
                )
            except ConfigError:
                layout = None
            stages = resolve(world_size=ranks, pipeline=ranks, micro=1, tokens=2048 * 8, schedule=schedule)
            accepted = built_by_torch(schedule, ranks, micro_batches, stages=stages)
            assert (layout is not None) == accepted, (ranks, micro_batches)


def built_by_torch(schedule, ranks, micro_batches, *, stages):
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=ranks)
    try:
        mine = [
            PipelineStage(torch.nn.Linear(1, 1), index, stages.stages, torch.device("cpu"))
            for index in stages.stages_of(1)
        ]
        if schedule in pipeline_parallel.SINGLE:
            pipeline_parallel.SINGLE[schedule](mine[0], micro_batches)
        else:
            built = pipeline_parallel.MULTI[schedule](mine, micro_batches)
            assert built.stage_index_to_group_rank == {s: stages.rank_of(s) for s in range(stages.stages)}
        return True
    except ValueError:
        return False
    finally:
        dist.destroy_process_group()


def test_key_value_heads_need_not_divide():
    model = ModelConfig(vocab_size=512, n_ctx=2048, n_layers=12, d_model=768, n_heads=12, n_kv_heads=2)
    assert resolve(tensor=4, model=model).tensor == 4
    assert [key_value_heads(model, rank=rank, tensor=4) for rank in range(4)] == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    assert key_value_heads(replace(model, n_kv_heads=4), rank=1, tensor=6) == [0, 1]


def test_vocabulary_rows_may_be_uneven_but_not_missing():
    small = ModelConfig(vocab_size=9, n_ctx=2048, n_layers=12, d_model=768, n_heads=12, vocab_multiple=1)
    assert resolve(tensor=4, model=replace(small, vocab_size=10), tokens=2048 * 8).tensor == 4  # 3, 3, 3, 1 rows
    with pytest.raises(
        ConfigError, match=r"parallel.tensor = 4 leaves ranks without .* 9 rows.*nearest that do not: 3 or 5"
    ):
        resolve(tensor=4, model=small)


@pytest.mark.parametrize("key", ["offload", "async_tensor"])
def test_what_only_cuda_has_is_refused_on_a_cpu(key):
    parallel = ParallelConfig(**{key: True})
    check_device(parallel, "cuda")
    with pytest.raises(ConfigError, match=f"parallel.{key} = true with device 'cpu'"):
        check_device(parallel, "cpu")


def test_nearest_values_named_in_errors_are_accepted():
    for micro in (4, 8):
        assert resolve(micro=micro).micro_batches == 256 // (8 * micro)


def test_every_size_of_a_batch_ramp_must_fit():
    """4 sequences at first, 8 at the end, on 2 data ranks."""
    model = ModelConfig(vocab_size=128, n_ctx=64, n_layers=2, d_model=32, n_heads=4)
    keys = {"ramp_tokens": 2048, "ramp_initial_tokens": 256, "ramp_increment_tokens": 64}
    for micro, message in (
        (1, "= 2 sequences does not divide the global batch of 5 sequences \\(320 tokens\\)"),
        (3, "= 6 sequences does not divide the global batch of 4 sequences \\(256 tokens\\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve_layout(
                ParallelConfig(data=2), BatchConfig(micro, 512, **keys), model=model, seq_len=64, world_size=2
            )
    even = BatchConfig(1, 512, ramp_tokens=2048, ramp_initial_tokens=256, ramp_increment_tokens=128)
    assert resolve_layout(ParallelConfig(data=2), even, model=model, seq_len=64, world_size=2).micro_batches == 4
    with pytest.raises(ConfigError, match=r"batch.ramp_initial_tokens = 256 without batch.ramp_tokens"):
        resolve_layout(
            ParallelConfig(), BatchConfig(1, 512, ramp_initial_tokens=256), model=model, seq_len=64, world_size=1
        )
