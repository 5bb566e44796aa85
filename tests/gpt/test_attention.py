"""Attention in query blocks, which compiled bf16 code on a CPU takes, against torch's kernel and against float64."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import gpt.attention
from gpt.attention import attend

COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def inputs(t, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, t, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("t", [2, 100, 128, 300])
def test_blocks_are_causal_attention(t):
    """In float64 to rounding, with gradients, when t is less than a block, a block, and not a multiple of one."""
    q, k, v = inputs(t, torch.float64)
    ours = gpt.attention._causal_in_blocks(q, k, v)
    reference = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), [q, k, v]),
        torch.autograd.grad((reference * weights).sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_compiled_bf16_is_no_further_from_float64_than_torchs_kernel():
    q, k, v = inputs(200, torch.bfloat16)
    exact = functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    kernel = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    taken = []

    def counted(*args):
        taken.append(1)  # traced once
        return causal_in_blocks(*args)

    causal_in_blocks = gpt.attention._causal_in_blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt.attention, "_causal_in_blocks", counted)
        ours = torch.compile(attend)(q, k, v)
        assert taken, "compiled bf16 code on a CPU goes through blocks"
        taken.clear()
        attend(q, k, v)
        attend(q[:, :, -1:], k, v)
        assert not taken, "code that is not compiled goes through torch's kernel"
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() < 1.5 * (kernel - exact).abs().max()
