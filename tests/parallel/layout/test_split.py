"""How the blocks of a model are distributed over pipeline stages."""

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.layout.split import balanced_split


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"pipeline": 8, "schedule": "interleaved_1f1b"},
            "model.n_layers = 12 is invalid: does not fill 16 pipeline stages .*Use at most 14 stages or at least 14",
        ),
        (
            {"pipeline": 4, "split": (3, 3, 3)},
            r"parallel.split = \[3, 3, 3\] is invalid: it names 3 stages, but .* gives 4",
        ),
        ({"pipeline": 4, "split": (3, 3, 3, 4)}, r"adds up to 13 blocks, but model.n_layers = 12"),
        ({"pipeline": 4, "split": (6, 0, 3, 3)}, r"stage 1 of 4 would hold nothing"),
        ({"pipeline": 2, "split": (13, -1)}, r"stage 1 of 2 would hold nothing"),
    ],
)
def test_errors_name_key_value_and_rule(resolve, keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**keys)


def test_the_head_counts_as_the_blocks_that_it_costs(resolve):
    """GPT-3 125M: the head costs 3.8 blocks. The last of four stages is the head alone; the last of two has fewer."""
    assert resolve(world_size=4, pipeline=4, data=1).split == (4, 4, 4, 0)
    assert resolve(world_size=2, pipeline=2, data=1).split == (8, 4)
    assert [list(resolve(world_size=2, pipeline=2, data=1).layers_of(s))[:1] for s in (0, 1)] == [[0], [8]]


def test_with_a_small_head_blocks_are_spread_evenly_and_the_first_stage_gets_the_fewest(resolve):
    small_head = ModelConfig(vocab_size=128, n_ctx=2048, n_layers=6, d_model=768, n_heads=12)
    assert resolve(world_size=4, pipeline=4, data=1, model=small_head).split == (1, 2, 2, 1)
    assert resolve(world_size=4, pipeline=4, data=1, model=small_head, split=(3, 1, 1, 1)).split == (3, 1, 1, 1)


def test_recomputation_makes_the_head_worth_fewer_blocks():
    model = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)
    plain, recomputed = (
        balanced_split(model, stages=4, seq_len=2048, recompute=recompute) for recompute in (False, True)
    )
    assert plain == (4, 4, 4, 0)
    assert recomputed == (3, 4, 4, 1), "the head now costs 2.85 blocks"
