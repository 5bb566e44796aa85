"""Which arrangements of processes are valid, and which error the others give."""

from dataclasses import replace

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.axes.tensor_parallel import key_value_heads
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import check_device


def test_data_takes_the_remaining_processes(resolve):
    layout = resolve(world_size=16, tensor=2, pipeline=4)
    assert (layout.tensor, layout.pipeline, layout.data, layout.data_shard) == (2, 4, 2, 2)
    assert layout.micro_batches == 256 // (2 * 4)
    assert layout.stages == 4


def test_zero_stage_0_shards_over_one_rank(resolve):
    assert resolve(zero_stage=0).data_shard == 1
    assert resolve(data_shard=4).data_shard == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor": 3}, "= 3 does not divide the 8 processes. Start 6 or 9"),
        ({"tensor": 2, "data": 3}, "= 6 is not the number of processes, 8. Start 6"),
        ({"tensor": 0}, "parallel.tensor = 0 is invalid: must be at least 1"),
        ({"stages_per_rank": 0}, "parallel.stages_per_rank = 0 is invalid: must be at least 1"),
        ({"tensor": 8}, "parallel.tensor = 8 is invalid: must divide model.n_heads = 12. Use 6 or 12"),
        ({"data_shard": 3}, "parallel.data_shard = 3 is invalid: must divide the data-parallel size = 8"),
        ({"zero_stage": 0, "data_shard": 2}, "nothing is sharded"),
        ({"seq_len": 4096}, "data.seq_len = 4096 is invalid: must be at most model.n_ctx = 2048"),
        (
            {"async_tensor": True, "tensor": 2},
            "async_tensor = true with parallel.compile = false and parallel.tensor = 2 is invalid",
        ),
        (
            {"async_tensor": True, "compile": True, "tensor": 2, "sequence_parallel": False, "seq_len": 2047},
            "sequence_parallel = false is invalid: .* Use parallel.async_tensor = false, or .*data.seq_len = 2047 and",
        ),
        (
            {"async_tensor": True, "compile": True},
            "compile = true and parallel.tensor = 1 is invalid: the compiler splits",
        ),
    ],
)
def test_errors_name_key_value_rule_and_nearest_values(resolve, keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**keys)


def test_stages_lie_in_rounds_or_as_a_v(resolve):
    rounds = resolve(world_size=3, pipeline=3, micro=2, tokens=2048 * 6, schedule="interleaved_1f1b", stages_per_rank=3)
    assert [rounds.stages_of(rank) for rank in range(3)] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    v = resolve(world_size=3, pipeline=3, data=1, schedule="zbv_zero_bubble")
    assert [v.stages_of(rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]
    assert resolve(world_size=2, schedule="zbv_zero_bubble").stages == 1


def test_tensor_need_not_divide_the_key_value_heads(resolve):
    model = ModelConfig(vocab_size=512, n_ctx=2048, n_layers=12, d_model=768, n_heads=12, n_kv_heads=2)
    assert resolve(tensor=4, model=model).tensor == 4
    assert [key_value_heads(model, rank=rank, tensor=4) for rank in range(4)] == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    assert key_value_heads(replace(model, n_kv_heads=4), rank=1, tensor=6) == [0, 1]


def test_ranks_may_hold_unequal_numbers_of_vocabulary_rows_but_none_may_be_empty(resolve):
    small = ModelConfig(vocab_size=9, n_ctx=2048, n_layers=12, d_model=768, n_heads=12, vocab_multiple=1)
    assert resolve(tensor=4, model=replace(small, vocab_size=10), tokens=2048 * 8).tensor == 4  # 3, 3, 3, 1 rows
    with pytest.raises(ConfigError, match=r"parallel.tensor = 4 .* leaves ranks without .* 9 rows.* Use 3 or 5"):
        resolve(tensor=4, model=small)


@pytest.mark.parametrize("key", ["offload", "async_tensor"])
def test_settings_that_need_cuda_are_refused_on_a_cpu(key):
    parallel = ParallelConfig(**{key: True})
    check_device(parallel, "cuda")
    with pytest.raises(ConfigError, match=f"parallel.{key} = true with device 'cpu'"):
        check_device(parallel, "cpu")
