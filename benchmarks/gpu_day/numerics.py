"""Parts that compare the training step on a device with a plain loop in float64 on the CPU, which shares no engine."""

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from engines import SEED, batches, build, one_process, settings_of
from job import Check, Job, LeftOut, holds
from torch import Tensor
from torch.nn import functional

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.optimizer import OptimizerConfig, build_optimizer
from parallel.engines.native import NativeEngine

STEPS, SEQUENCES, MICRO_BATCH = 5, 4, 2
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
FP32 = (1e-4, 1e-4)  # of the loss in nats; of a gradient, as a share of its norm
BF16 = (2e-2, 1e-1)
FP8 = (5e-2, 3e-1)  # gradients are rounded to 2 bits of mantissa before their products
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Course:
    """The losses of a few steps, and the gradients of the first one by name."""

    losses: list[float]
    gradients: dict[str, Tensor]


def model_of(job: Job) -> ModelConfig:
    if job.tiny:
        return ModelConfig(vocab_size=256, n_ctx=32, n_layers=2, d_model=64, n_heads=2)
    return ModelConfig(vocab_size=2048, n_ctx=256, n_layers=4, d_model=256, n_heads=4)


def reference(config: ModelConfig) -> Course:
    """A model, logits in full, autograd and the formula of AdamW, all in float64 on the CPU."""
    model = GPT(config)
    initialise(model, config, seed=SEED)
    model.double()
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    adam = torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, betas=betas, eps=OPTIMIZER.eps, foreach=False)
    losses, gradients = [], {}
    for step, batch in zip(range(STEPS), batches(config, SEQUENCES), strict=False):
        loss = functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in named}
        torch.nn.utils.clip_grad_norm_([p for _, p in named], OPTIMIZER.max_gradient_norm)
        adam.step()
        adam.zero_grad()
    return Course(losses, gradients)


def course(engine: NativeEngine, config: ModelConfig) -> Course:
    """The same steps on an engine."""
    losses, gradients = [], {}
    for step, batch in zip(range(STEPS), batches(config, SEQUENCES), strict=False):
        engine.forward_backward(batch)
        if step == 0:
            gradients = {name: g.cpu() for name, g in engine.named_gradients()}
        losses.append(engine.optimizer_step(OPTIMIZER.learning_rate).loss.mean)
    return Course(losses, gradients)


def compare(name: str, found: Course, truth: Course, tolerances: tuple[float, float]) -> Iterator[Check]:
    loss, gradient = tolerances
    apart = max(abs(a - b) for a, b in zip(found.losses, truth.losses, strict=True))
    yield Check(f"{name}: loss of {STEPS} steps", apart, loss, "nats apart")
    smallest = 1e-3 * math.sqrt(sum(float(g.square().sum()) for g in truth.gradients.values()))  # a key's bias has none
    wrong = {
        key: float((found.gradients[key].double() - g).norm() / g.norm().clamp(min=smallest))
        for key, g in truth.gradients.items()
    }
    worst = max(wrong, key=wrong.__getitem__)
    yield Check(f"{name}: gradients of step 1", wrong[worst], gradient, "of the norm", f"the largest is of {worst}")


def on_device(job: Job, config: ModelConfig, **parallel: object) -> Course:
    settings = settings_of(config, micro_batch_size=MICRO_BATCH, sequences=SEQUENCES, optimizer=OPTIMIZER, **parallel)
    torch.compiler.reset()
    return course(build(settings, job.device), config)


def fp32(job: Job) -> Iterator[Check]:
    """The step in fp32; modern decoders too."""
    config = model_of(job)
    modern = replace(config, n_kv_heads=config.n_heads // 2, positions="rope", norm="rmsnorm", activation="swiglu",
                     tied=False, bias=False)  # fmt: skip
    with one_process(job.device):
        for name, model in (("GPT-3", config), ("RoPE, RMSNorm, SwiGLU, grouped heads", modern)):
            yield from compare(name, on_device(job, model, precision="fp32"), reference(model), FP32)


def bf16(job: Job) -> Iterator[Check]:
    """The step in bf16, with and without recomputation and ZeRO."""
    config = model_of(job)
    truth = reference(config)
    with one_process(job.device):
        for name, keys in (
            ("bf16", {}),
            ("bf16, selective recomputation", {"recompute": "selective"}),
            ("bf16, full recomputation", {"recompute": "full"}),
            ("bf16, ZeRO 3", {"zero_stage": 3}),
        ):
            yield from compare(name, on_device(job, config, precision="bf16", **keys), truth, BF16)


def fp8(job: Job) -> Iterator[Check]:
    """The step with fp8 products in its blocks, plain and compiled."""
    config = model_of(job)
    if job.on_gpu and torch.cuda.get_device_capability(job.device) < FP8_CAPABILITY:
        raise LeftOut("fp8 products need a GPU of capability 8.9 or more, such as an L40S or H100")
    truth, keys = reference(config), {"precision": "fp8", "fp8_min_width": config.d_model}
    with one_process(job.device):
        for name, compile_it in (("fp8", False), ("compiled fp8", True)):
            if not (compile_it and job.tiny):
                yield from compare(name, on_device(job, config, compile=compile_it, **keys), truth, FP8)


def compiled(job: Job) -> Iterator[Check]:
    """Compiled blocks and loss, in fp32 and bf16, with and without recomputation."""
    config = model_of(job)
    truth = reference(config)
    with one_process(job.device):
        for name, keys, tolerances in (
            ("fp32", {"precision": "fp32"}, FP32),
            ("bf16", {"precision": "bf16"}, BF16),
            ("bf16, selective recomputation", {"precision": "bf16", "recompute": "selective"}, BF16),
        ):
            yield from compare(f"compiled {name}", on_device(job, config, compile=True, **keys), truth, tolerances)


def adamw(job: Job) -> Iterator[Check]:
    """The fused AdamW that training builds, against its formula in float64, over ten updates."""
    generator, config = torch.Generator().manual_seed(SEED), replace(OPTIMIZER, weight_decay=0.1)
    weight = 0.02 * torch.randn(1000, 257, generator=generator)
    gradients = [torch.randn(weight.shape, generator=generator) * 10.0**-i for i in range(10)]
    parameter = torch.nn.Parameter(weight.to(job.device, copy=True))
    optimizer = build_optimizer([("weight", parameter)], config)
    yield holds("torch takes the fused kernel", bool(optimizer.defaults["fused"]))
    exact, mean, square = weight.double(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for step, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.to(job.device)
        optimizer.step()
        g = gradient.double()
        exact = exact * (1 - config.learning_rate * config.weight_decay)
        mean = config.beta1 * mean + (1 - config.beta1) * g
        square = config.beta2 * square + (1 - config.beta2) * g * g
        corrected = square / (1 - config.beta2**step)
        exact = exact - config.learning_rate * (mean / (1 - config.beta1**step)) / (corrected.sqrt() + config.eps)
    apart = (parameter.detach().cpu().double() - exact).abs().max() / (exact - weight.double()).abs().max()
    yield Check("weights after ten updates", float(apart), 1e-4, "of the largest change")


def offload(job: Job) -> Iterator[Check]:
    """Weights, gradients and optimizer in host memory: the same losses, less memory on the device."""
    config, peaks = model_of(job), {}
    truth = reference(config)
    with one_process(job.device):
        for name, off in (("on the device", False), ("offloaded", True)):
            if job.on_gpu:
                gc.collect()  # engines hold themselves in reference cycles
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(job.device)
            found = on_device(job, config, precision="fp32", offload=off)
            yield from compare(name, found, truth, FP32)
            if job.on_gpu:
                peaks[name] = torch.cuda.max_memory_allocated(job.device) / 2**20
        for name, peak in peaks.items():
            yield Check(f"{name}: peak memory", peak, unit="MiB")
        if peaks:
            yield Check("offloaded / on the device", peaks["offloaded"] / peaks["on the device"], 1.0, "of the memory")
