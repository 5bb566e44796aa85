"""Fragments without an optimizer, on one process: ranges, their bits at the start, and the whole tensor again.

test_deepspeed.py has them on several ranks under ZeRO.
"""

import torch
from deepspeed_ranks import frozen_fragments
from layout_runs import SEED, settings_of

from gpt.model.initialisation import initialise
from parallel.zero.fragments import fill_range, rows_of


def test_a_range_is_the_end_of_a_row_whole_rows_and_the_start_of_a_row():
    for columns in (1, 4, 5):
        for start in range(0, 12):
            for size in range(0, 12):
                parts = list(rows_of(start, size, columns))
                assert [i for first, stop in parts for i in range(first, stop)] == list(range(start, start + size))
                for first, stop in parts:
                    assert first // columns == (stop - 1) // columns or first % columns == stop % columns == 0


def test_a_range_has_the_bits_of_the_whole_parameter():
    settings = settings_of({"world_size": 1, "parallel": {}})
    shape = (10, 7)
    whole = torch.empty(70)
    fill_range(whole, "blocks.0.mlp.up.weight", 0, shape=shape, config=settings.model, seed=SEED)
    assert whole.std() > 0
    for start, size in ((0, 3), (5, 30), (68, 2), (20, 0)):
        part = torch.empty(size)
        fill_range(part, "blocks.0.mlp.up.weight", start, shape=shape, config=settings.model, seed=SEED)
        assert torch.equal(part, whole[start : start + size])


def test_weights_are_those_of_one_device(process_group):
    fragments, stage, settings = frozen_fragments(torch.float32)
    stage_weights = [weight.detach().clone() for weight in stage.parameters()]
    initialise(stage.model, settings.model, seed=SEED)
    assert all(torch.equal(*pair) for pair in zip(stage_weights, stage.parameters(), strict=True))
    assert fragments.trainable == []
    for one in fragments.all:
        assert fragments.state_of(one) == {}
        assert torch.equal(fragments.whole(one, one.weight), one.parameter)


def test_bf16_weights_keep_an_fp32_copy(process_group):
    fragments, *_ = frozen_fragments(torch.bfloat16)
    exact, _, _ = frozen_fragments(torch.float32)
    for one, other in zip(fragments.all, exact.all, strict=True):
        assert one.parameter.dtype == torch.bfloat16
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.parameter, other.parameter.bfloat16())


def test_gathering_keeps_the_sign_of_zero(process_group):
    fragments, _, _ = frozen_fragments(torch.float32)
    one = fragments.all[0]
    one.weight.fill_(-0.0)
    assert torch.signbit(fragments.whole(one, one.weight)).all()
