"""Attention segment by segment on a CPU, against dense masked attention: forward, gradients, padding, grouped heads."""

import pytest
import torch
from torch.nn import functional

from gpt.losses.marks import PADDING
from gpt.model.attention import attend
from gpt.model.masks import AttentionMask
from gpt.model.segment_attention import segment_attention

T = 9
DIFFERENT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, PADDING, PADDING], [5, 6, 6, 6, 6, 6, 7, 7, 7]])
SHARED = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2]] * 2)
ONE = torch.zeros(2, T, dtype=torch.int64)
RETURNING = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 0]] * 2)  # id 0 comes back


def inputs(dtype=torch.float64):
    """q, k, v (2, 3, t, 8) as the model makes them: heads lie beside each other, so they are not contiguous."""
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(2, T, 3, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in made]


def reference(q, k, v, ids, *, causal):
    """Dense masked softmax; 0 in padding."""
    allowed = ids[:, :, None] == ids[:, None, :]
    if causal:
        allowed = allowed & torch.ones(T, T, dtype=torch.bool).tril()
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed.unsqueeze(1))
    return out.masked_fill((ids == PADDING)[:, None, :, None], 0.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("ids", [DIFFERENT, SHARED, ONE], ids=["different", "shared", "one"])
def test_output_and_gradients_equal_dense_attention(ids, causal):
    q, k, v = inputs()
    weights = torch.randn(2, 3, T, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = reference(q, k, v, ids, causal=causal)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    out, _ = segment_attention(q, k, v, ids, causal)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_padding_gives_0_and_gets_no_gradient():
    q, k, v = inputs()
    out, _ = segment_attention(q, k, v, DIFFERENT, True)
    padding = (DIFFERENT == PADDING)[:, None, :, None].expand_as(out)
    assert not out[padding].any()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert not any(grad[padding].any() for grad in grads)


def test_an_id_that_comes_back_is_refused():
    """Masks compare ids, but this kernel takes runs of equal ids. Both agree only if no id comes back."""
    with pytest.raises(AssertionError, match=r"row 0: a segment id comes back after another one, in \[0, 1, 0\]"):
        segment_attention(*inputs(), RETURNING, True)
    between = torch.tensor([[PADDING, 0, 0, PADDING, 1, 1, 1, PADDING, PADDING]] * 2)  # padding may come back
    assert segment_attention(*inputs(), between, True)[0].isfinite().all()


def test_one_segment_has_the_bits_of_plain_causal_attention():
    q, k, v = inputs(torch.float32)
    assert torch.equal(attend(q, k, v, AttentionMask(segment_ids=ONE)), attend(q, k, v))


@pytest.mark.parametrize("kind", ["causal", "full"])
def test_grouped_heads_share_keys_and_values(kind):
    q, k, v = inputs()
    mask = AttentionMask(kind, segment_ids=DIFFERENT)
    few = k[:, :1], v[:, :1]
    ours = attend(q, *few, mask)
    expected = reference(q, *(x.expand_as(q) for x in few), DIFFERENT, causal=kind == "causal")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_prefix_within_segments_takes_the_dense_mask():
    q, k, v = inputs()
    lengths = torch.tensor([2, 4])
    mask = AttentionMask("prefix", segment_ids=SHARED, prefix_lengths=lengths)
    allowed = torch.ones(T, T, dtype=torch.bool).tril() | (torch.arange(T) < lengths[:, None, None])
    allowed = allowed & (SHARED[:, :, None] == SHARED[:, None, :])
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed.unsqueeze(1))
    torch.testing.assert_close(attend(q, k, v, mask), expected, rtol=1e-12, atol=1e-12)


def test_the_operator_is_registered_as_torch_asks():
    """Shapes and strides on fake tensors, autograd and mutation, as torch.compile relies on them."""
    torch.library.opcheck(segment_attention, (*inputs(), DIFFERENT, True))
