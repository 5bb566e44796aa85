"""The part that compares attention's kernels with float64, and times them."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from job import Check, Job, finish, holds
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt.losses.marks import PADDING
from gpt.model.attention import BACKENDS, attend, kernel_order
from gpt.model.attention_kernels import kernels_for
from gpt.model.masks import AttentionMask

ROUNDS = 5
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the norm of the output and of each gradient
REFUSALS = ("No available kernel", "No viable backend")  # torch's words if a kernel does not take the inputs
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(job: Job) -> Iterator[Check]:
    """Each kernel, grouped heads, and documents kept apart: forward and backward, and their speed."""
    b, t, e = (2, 64, 16) if job.tiny else (4, 2048, 64)
    for dtype, heads, width in ((torch.float32, 8, e), (torch.bfloat16, 8, e), (torch.bfloat16, 16, 2 * e)):
        speeds = {}
        for name, kernel in BACKENDS.items():
            for check in one_kernel(job, kernel, (b, heads, t, width), dtype):
                yield check
                speeds[name] = check.found if check.unit == "TFLOP/s" else 0.0
        if job.on_gpu:
            order = kernels_for(torch.cuda.get_device_capability(job.device))
            first = next(name for name in order if speeds[name])  # torch takes the next one if a kernel refuses
            ratio = max(speeds.values()) / speeds[first]
            title = f"the fastest kernel / {first}, which training takes: {words(dtype)}, head {width}"
            yield Check(title, ratio, 1.1, "times")
    with kernel_order(job.device):
        q, k, v = inputs(job, (b, 8, t, e), torch.bfloat16, key_heads=2)
        yield from compare("as in training, 2 key-value heads", attend, causal, (q, k, v))
        if job.on_gpu:
            yield holds("as in training: a fused kernel runs", *fused(lambda: attend(q, k, v)))
    yield from documents(job, (b, 8, t, e))


def inputs(job: Job, shape: tuple[int, ...], dtype: torch.dtype, *, key_heads: int | None = None) -> list[Tensor]:
    """q, k, v as the model makes them: heads lie side by side, so they are not contiguous."""
    generator, (b, h, t, e) = torch.Generator().manual_seed(0), shape
    made = [torch.randn(b, t, n, e, generator=generator) for n in (h, key_heads or h, key_heads or h)]
    return [x.to(job.device, dtype).transpose(1, 2).requires_grad_() for x in made]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in plain products, in the type of its inputs."""
    seen = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    return masked(q, k, v, seen)


def masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def compare(name: str, function: Function, truth: Function, qkv: list[Tensor] | tuple[Tensor, ...]) -> Iterator[Check]:
    """One sequence at a time for the truth: its scores are whole matrices of float64."""
    dtype = qkv[0].dtype
    weights = torch.randn(qkv[0].shape, device=qkv[0].device, dtype=dtype)
    out = function(*qkv)
    found = [out, *torch.autograd.grad((out * weights).sum(), qkv)]
    rows = []
    for i in range(len(weights)):
        exact = [x[i : i + 1].detach().double().requires_grad_() for x in qkv]
        right = truth(*exact)
        rows.append([right, *torch.autograd.grad((right * weights[i : i + 1].double()).sum(), exact)])
    apart = [
        float((mine.double() - torch.cat(theirs)).norm() / torch.cat(theirs).norm())
        for mine, theirs in zip(found, zip(*rows, strict=True), strict=True)
    ]
    yield Check(f"{name}: output and gradients", max(apart), TOLERANCES[dtype], "of the norm")


def one_kernel(job: Job, kernel: SDPBackend, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Check]:
    """A kernel against float64, and its speed; a figure of 0 if it refuses these inputs."""
    qkv = inputs(job, shape, dtype)
    name = f"{kernel.name.removesuffix('_ATTENTION').lower()}, {words(dtype)}, head {shape[-1]}"

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    try:
        yield from compare(name, run, causal, qkv)
    except RuntimeError as error:
        if not any(words in str(error) for words in REFUSALS):
            raise
        yield Check(f"{name}: speed", 0.0, unit="TFLOP/s", note="refuses these inputs")
        return
    yield Check(f"{name}: speed", tflops_per_s(job, lambda: run(*qkv), shape), unit="TFLOP/s", note="both passes")


def words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tflops_per_s(job: Job, forward: Callable[[], Tensor], shape: tuple[int, ...]) -> float:
    """The median of ROUNDS times of forward and backward. The products of causal attention count once: 7 b h t^2 e."""
    spans = []
    for _ in range(ROUNDS + 1):
        finish(job.device)
        started_at = time.perf_counter()
        for _ in range(1 if job.tiny else 10):
            forward().sum().backward()
        finish(job.device)
        spans.append((time.perf_counter() - started_at) / (1 if job.tiny else 10))
    b, h, t, e = shape
    return 7 * b * h * t * t * e / statistics.median(spans[1:]) / 1e12


def fused(function: Callable[[], Tensor]) -> tuple[bool, str]:
    """Whether torch's fused attention ran, and the name of its operator."""
    with torch.autograd.profiler.profile(use_device="cuda", use_kineto=True) as seen:
        function()
    names = sorted({event.name for event in seen.function_events if "_scaled_dot_product_" in event.name})
    return bool(names) and not any("math" in name for name in names), ", ".join(names)


def documents(job: Job, shape: tuple[int, ...]) -> Iterator[Check]:
    """Attention within documents: FlexAttention on a GPU, segment by segment on a CPU."""
    b, _, t, _ = shape
    ids = torch.arange(t).div(t / 5, rounding_mode="floor").long().repeat(b, 1)  # five documents
    ids[:, -t // 16 :] = PADDING
    ids = ids.to(job.device)
    qkv = inputs(job, shape, torch.bfloat16)
    mask = AttentionMask(segment_ids=ids).for_device(rows=b, length=t, device=job.device)
    counted = (ids[0] != PADDING)[None, None, :, None]
    seen = (ids[0][:, None] == ids[0][None, :]).tril()

    def ours(*qkv: Tensor) -> Tensor:
        return attend(*qkv, mask).masked_fill(~counted, 0.0)  # type: ignore[misc]

    def truth(*qkv: Tensor) -> Tensor:
        return masked(*qkv, seen).masked_fill(~counted, 0.0)  # type: ignore[misc]

    yield from compare("documents kept apart", ours, truth, qkv)
    speed = tflops_per_s(job, lambda: ours(*qkv), shape)
    yield Check("documents kept apart: speed", speed, unit="TFLOP/s", note="as if causal attention were whole")
    yield holds("finite gradients", all(bool(x.grad.isfinite().all()) for x in chain(qkv) if x.grad is not None))
