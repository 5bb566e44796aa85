"""Which arrangements are allowed, and what the user is told of the others."""

from dataclasses import replace

import pytest

from gpt.config import ModelConfig
from gpt.errors import ConfigError
from parallel.layout import BatchConfig, ParallelConfig, check_device, resolve_layout
from parallel.tensor_parallel import key_value_heads

MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)


def resolve(world_size=8, micro=4, tokens=524_288, seq_len=2048, model=MODEL, **parallel):
    config = ParallelConfig(**parallel)
    return resolve_layout(config, BatchConfig(micro, tokens), model=model, seq_len=seq_len, world_size=world_size)


def test_data_takes_what_is_left():
    layout = resolve(world_size=16, tensor=2, pipeline=4)
    assert (layout.tensor, layout.pipeline, layout.data, layout.data_shard) == (2, 4, 2, 2)
    assert layout.micro_batches == 256 // (2 * 4)
    assert [list(layout.layers_of(stage, 12)) for stage in (0, 3)] == [[0, 1, 2], [9, 10, 11]]


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
            {"pipeline": 8},
            "model.n_layers = 12 is not divisible by parallel.pipeline = 8; nearest that divide: 6 or 12",
        ),
        ({"tensor": 8}, "model.n_heads = 12 is not divisible by parallel.tensor = 8; nearest that divide: 6 or 12"),
        ({"data_shard": 3}, "data-parallel size = 8 is not divisible by parallel.data_shard = 3"),
        ({"zero_stage": 0, "data_shard": 2}, "nothing is sharded"),
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
            "needs at least as many micro-batches a step as stages: 2 <",
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
