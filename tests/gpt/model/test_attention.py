"""Attention: its backward in compiled bf16 code on a CPU, against torch's kernel and float64; its choices on CUDA."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

import gpt.model.cpu_attention
from gpt.errors import ConfigError
from gpt.model.attention import BACKENDS, attend, check_kernel_on_gpu, kernel_order
from gpt.model.cpu_attention import causal_backward
from gpt.model.masks import AttentionMask

COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def inputs(t, dtype):
    """q, k, v as the model makes them: heads lie beside each other, so they are not contiguous."""
    generator = torch.Generator().manual_seed(0)
    b = 2 if t < 1000 else 1
    return [torch.randn(b, t, 3, 16, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def reference(q, k, v, weights):
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out, torch.autograd.grad((out * weights).sum(), [q, k, v])


@pytest.mark.parametrize("t", [2, 100, 128, 300, 1100])
def test_backward_in_blocks(t):
    """In float64 to rounding, for less than a block, one block, some, and blocks longer than the least."""
    q, k, v = inputs(t, torch.float64)
    weights = torch.randn(q.shape, dtype=torch.float64)
    out, expected = reference(q, k, v, weights)
    with torch.no_grad():
        scores = (q @ k.mT / 4).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
        ours = causal_backward(weights, q, k, v, out, scores.logsumexp(-1))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_compiled_bf16_is_as_near_to_float64_as_rounding_lets_it(monkeypatch):
    q, k, v = inputs(200, torch.bfloat16)
    weights = torch.randn(q.shape, dtype=torch.bfloat16)
    exact = reference(*(x.detach().double().requires_grad_() for x in (q, k, v)), weights.double())
    kernel = reference(q, k, v, weights)
    taken = []
    whole = gpt.model.cpu_attention.causal_backward
    monkeypatch.setattr(gpt.model.cpu_attention, "causal_backward", lambda *args: taken.append(1) or whole(*args))
    out = torch.compile(attend)(q, k, v)
    ours = out, torch.autograd.grad((out * weights).sum(), [q, k, v])
    assert taken, "compiled bf16 code on a CPU goes through our backward"
    taken.clear()
    attend(q, k, v).sum().backward()
    assert not taken, "code that is not compiled goes through torch's"
    assert torch.equal(
        ours[0], kernel[0]
    )  # the gradients' scores are rounded to bf16 between products, the kernel's not
    for mine, theirs, truth in zip(ours[1], kernel[1], exact[1], strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - truth).norm() < 2.5 * (theirs - truth).norm()


@pytest.mark.parametrize("mask", [None, AttentionMask("full")], ids=["causal", "full"])
def test_on_cuda_grouped_heads_are_shared_in_half_precision(mask):
    """With fake tensors. K and V keep their 2 heads in bf16, and are repeated to 8 in fp32."""
    for dtype, heads in ((torch.bfloat16, 2), (torch.float32, 8)):
        with FakeTensorMode(), SharedHeads() as seen:
            q, kv = (torch.empty(2, n, 16, 8, dtype=dtype, device="cuda") for n in (8, 2))
            assert attend(q, kv, kv, mask).shape == q.shape
        assert seen.key_heads == [heads]


def test_on_cuda_grouped_heads_keep_a_prefix_mask(monkeypatch):
    """With fake tensors, which without CUDA have no indices. Shared heads take no mask: all would be seen."""
    monkeypatch.setattr(
        AttentionMask, "dense", lambda _, b, t, device: torch.empty(b, 1, t, t, dtype=torch.bool, device=device)
    )
    with FakeTensorMode(), SharedHeads() as seen:
        q, kv = (torch.empty(2, n, 16, 8, dtype=torch.bfloat16, device="cuda") for n in (8, 2))
        attend(q, kv, kv, AttentionMask("prefix", prefix_lengths=torch.full((2,), 3, device="cuda")))
    assert seen.masks == [(2, 1, 16, 16)]


def test_shared_heads_equal_repeated_ones():
    """torch's own sharing, in the order of `attend`: query heads 0 to 3 share the first key-value head."""
    q, k, v = (torch.randn(2, n, 16, 8, generator=torch.Generator().manual_seed(n)) for n in (8, 2, 2))
    shared = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(shared, attend(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "kernel", "order"),
    [
        ((8, 0), "auto", ["flash", "cudnn", "efficient", "math"]),
        ((9, 0), "auto", ["cudnn", "flash", "efficient", "math"]),
        ((9, 0), "flash", ["flash", "efficient", "math"]),
    ],
)
def test_a_gpus_generation_or_the_recipe_gives_the_order_of_kernels(monkeypatch, capability, kernel, order):
    """torch reads the order where it chooses a kernel, and none that is left out may run."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = torch._C._get_sdp_priority_order()
    with kernel_order(torch.device("cuda"), kernel):
        ordered = [SDPBackend(i) for i in torch._C._get_sdp_priority_order()]
        assert ordered[: len(order)] == [BACKENDS[name] for name in order]
        assert torch.backends.cuda.cudnn_sdp_enabled() == ("cudnn" in order)
        assert torch.backends.cuda.flash_sdp_enabled() == ("flash" in order)
    assert torch._C._get_sdp_priority_order() == before
    with kernel_order(torch.device("cpu"), kernel):
        assert torch._C._get_sdp_priority_order() == before


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient"])
def test_a_kernel_that_torch_declines_is_refused(kernel):
    """A CPU build declines every kernel of a GPU; a GPU's build gives its reason."""
    sizes = {"dtype": torch.bfloat16, "heads": (4, 2), "seq_len": 16, "e": 8}
    with pytest.raises(ConfigError, match=f'parallel.attention = "{kernel}" is invalid on this GPU: .*Use "auto"'):
        check_kernel_on_gpu(kernel, device=torch.device("cpu"), **sizes)
    for always in ("auto", "math"):
        check_kernel_on_gpu(always, device=torch.device("cpu"), **sizes)


class SharedHeads(TorchFunctionMode):
    """Notes the key heads that torch's attention receives, and the shape of its mask."""

    def __init__(self):
        super().__init__()
        self.key_heads, self.masks = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is functional.scaled_dot_product_attention:
            self.key_heads.append(args[1].size(1))
            mask = (kwargs or {}).get("attn_mask")
            self.masks.append(None if mask is None else tuple(mask.shape))
        return function(*args, **(kwargs or {}))


def masked_reference(q, k, v, seen):
    """In plain products, with key-value heads repeated; rows that see nothing are 0."""
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [8, 2])
@pytest.mark.parametrize("kind", ["causal", "full", "documents", "prefix"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_gpu_gives_the_output_and_gradients_of_float64(kind, heads, dtype, tolerance):
    generator, device, t = torch.Generator().manual_seed(0), torch.device("cuda", 0), 200
    exact = [torch.randn(2, n, t, 32, generator=generator, dtype=torch.float64) for n in (8, heads, heads)]
    seen = torch.ones(t, t, dtype=torch.bool).tril().expand(2, 1, t, t)
    mask = AttentionMask("full") if kind == "full" else None
    if kind == "full":
        seen = torch.ones_like(seen)
    elif kind == "documents":
        ids = torch.arange(t).div(60, rounding_mode="floor").repeat(2, 1)
        mask, seen = AttentionMask(segment_ids=ids.to(device)), seen & (ids[:, None, :, None] == ids[:, None, None, :])
    elif kind == "prefix":
        lengths = torch.tensor([17, 120])
        mask = AttentionMask("prefix", prefix_lengths=lengths.to(device))
        seen = seen | (torch.arange(t) < lengths[:, None, None, None])
    if mask is not None:
        mask = mask.for_device(rows=2, length=t, device=device)
    qkv = [x.to(device, dtype).requires_grad_() for x in exact]
    with kernel_order(device):
        out = attend(*qkv, mask)
        found = [out, *torch.autograd.grad(out.sum(), qkv)]
    exact = [x.detach().cpu().double().requires_grad_() for x in qkv]
    right = masked_reference(*exact, seen)
    for mine, truth in zip(found, [right, *torch.autograd.grad(right.sum(), exact)], strict=True):
        assert float(((mine.cpu().double() - truth).norm() / truth.norm()).detach()) < tolerance
