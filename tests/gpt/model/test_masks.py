"""Attention masks by rule, against masks written out by hand, and attention under them against dense masked softmax."""

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gpt.losses.marks import PADDING
from gpt.model.attention import attend
from gpt.model.masks import AttentionMask, document_mask, is_segmented

T = 6
IDS = torch.tensor([[0, 0, 1, 1, 1, PADDING], [3, 3, 3, 3, 4, 4]])
PREFIX = torch.tensor([2, 5])
MASKS = {
    "causal": AttentionMask(),
    "full": AttentionMask("full"),
    "prefix": AttentionMask("prefix", prefix_lengths=PREFIX),
    "causal in segments": AttentionMask(segment_ids=IDS),
    "full in segments": AttentionMask("full", segment_ids=IDS),
    "prefix in segments": AttentionMask("prefix", segment_ids=IDS, prefix_lengths=PREFIX),
}


def by_hand(name):
    """(2, 1, t, t), written as loops over rows, queries and keys."""
    kind = name.partition(" ")[0]
    allowed = torch.zeros(2, 1, T, T, dtype=torch.bool)
    for row in range(2):
        for query in range(T):
            for key in range(T):
                seen = key <= query or kind == "full" or (kind == "prefix" and key < PREFIX[row])
                same = "segments" not in name or IDS[row, query] == IDS[row, key]
                allowed[row, 0, query, key] = seen and bool(same)
    return allowed


@pytest.mark.parametrize("name", MASKS)
def test_dense_masks_follow_the_rule(name):
    assert torch.equal(MASKS[name].dense(2, T, torch.device("cpu")), by_hand(name))


@pytest.mark.parametrize("name", MASKS)
def test_flex_attention_in_eager_mode_agrees_with_the_dense_mask(name):
    """FlexAttention gets the rule as a function; on a GPU its compiled form is used instead of the dense mask."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, T, 8, generator=generator) for _ in range(3))
    blocks = create_block_mask(MASKS[name].rule, B=2, H=None, Q_LEN=T, KV_LEN=T, device="cpu")
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=by_hand(name))
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=blocks), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_agrees_with_the_dense_mask(name, groups):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, T, 8, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 4 // groups, T, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    wide_k, wide_v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    expected = functional.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=by_hand(name))
    real = IDS != PADDING if "segments" in name else torch.ones(2, T, dtype=torch.bool)
    ours = attend(q, k, v, MASKS[name])
    torch.testing.assert_close(ours.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-12, atol=1e-12)


def test_documents_need_a_mask_only_with_segment_ids():
    assert document_mask(None) is None
    mask = document_mask(IDS)
    assert mask is not None
    assert (mask.kind, mask.segment_ids is IDS) == ("causal", True)


def test_only_masks_by_segments_alone_go_to_the_segment_kernel():
    assert [name for name, mask in MASKS.items() if is_segmented(mask)] == ["causal in segments", "full in segments"]
    assert not is_segmented(None)
    assert not is_segmented(torch.ones(1, 1, T, T, dtype=torch.bool))


def test_prefix_lengths_belong_to_prefix_masks_alone():
    """Else the kernels would disagree: one looks at the kind, another at the lengths."""
    with pytest.raises(AssertionError, match="prefix_lengths"):
        AttentionMask("causal", prefix_lengths=PREFIX)
    with pytest.raises(AssertionError, match="prefix_lengths"):
        AttentionMask("prefix")


def test_a_cpu_needs_no_block_mask():
    for mask in MASKS.values():
        assert mask.for_device(rows=2, length=T, device=torch.device("cpu")) is mask
