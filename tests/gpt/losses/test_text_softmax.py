"""Softmax-weighted sums over a text are those of a plain softmax over its own tokens, in a row with several texts."""

import pytest
import torch

from gpt.losses.text_softmax import softmax_over_text

POSITIONS = torch.tensor([[*range(9), *range(1), *range(6), 0, 0, 0, *range(2)], [*range(21)]])


def drawn(scale=1.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(*POSITIONS.shape, 4, generator=draw, dtype=dtype) * scale
    return scores.requires_grad_(), torch.randn(*POSITIONS.shape, 4, 3, generator=draw, dtype=dtype).requires_grad_()


def by_hand(scores, values):
    """One softmax for each position, in float64."""
    found = torch.zeros(*values.shape[:2], values.size(-1), dtype=torch.float64)
    for row, of_row in enumerate(POSITIONS.tolist()):
        for t, position in enumerate(of_row):
            text = slice(t - position, t + 1)
            weights = scores[row, text].double().softmax(0)
            found[row, t] = (weights.unsqueeze(-1) * values[row, text].double()).sum((0, 1))
    return found


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4, 1e30])
def test_each_position_has_a_plain_softmax_over_its_text(scale):
    """Tolerance 1e-6, also where one score is far above all others; gradients too."""
    scores, values = drawn(scale)
    found, wanted = softmax_over_text(scores, values, POSITIONS), by_hand(scores, values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    for ours, plain in zip(
        torch.autograd.grad((found * weights).sum(), (scores, values)),
        torch.autograd.grad((wanted * weights).sum(), (scores, values)),
        strict=True,
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_later_peak_does_not_erase_what_came_before():
    """A softmax by the text's largest score would divide 0 by 0 before the peak."""
    scores = torch.tensor([0.0, 1.0, 5000.0, -5000.0]).view(1, 4, 1)
    values = torch.tensor([1.0, 2.0, 7.0, 9.0]).view(1, 4, 1, 1)
    share = torch.tensor(1.0).sigmoid().item()
    found = softmax_over_text(scores, values, None).flatten()
    assert found.tolist() == pytest.approx([1.0, 1 + share, 7.0, 7.0], rel=1e-7)


def test_no_text_reads_another():
    """Bit for bit, also if the other text has huge scores and no numbers as values."""
    scores, values = (one.detach() for one in drawn())
    before = softmax_over_text(scores, values, POSITIONS)
    scores[0, :9], values[0, :9] = 1e30, float("nan")
    after = softmax_over_text(scores, values, POSITIONS)
    assert after[0, :9].isnan().all()
    assert torch.equal(after[0, 9:], before[0, 9:])
    assert torch.equal(after[1], before[1])


def test_without_positions_a_row_is_one_text():
    scores, values = drawn()
    assert torch.equal(softmax_over_text(scores, values, None)[1], softmax_over_text(scores, values, POSITIONS)[1])
