"""Small training steps with the real engine: the time of everything that is in no kernel's table.

On a CPU a small model's step is mostly that: Python, autograd, FSDP, torch's pipeline schedules, one call of a kernel
after the other. The profile keeps the steps' times, and `parallel/planner/machine/` separates the parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from gpt.losses.batch import Batch
from gpt.model.attention import kernel_order
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.agreement import wait_for_all
from parallel.axes.data_parallel import prepare_backward
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import SEVERAL_STAGES, BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.choice.candidates import RECOMPUTE
from parallel.planner.machine.profile import EngineSample, model_of
from parallel.planner.measuring.rounds import Stopwatch

LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class SampleSize:
    """A small model and its micro-batch. Heads are 64 wide, or narrower where each rank needs one."""

    d_model: int
    n_layers: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    style: str = "gpt3"

    def times(self, factor: int) -> "SampleSize":
        """The same with all widths and lengths multiplied: a GPU needs larger ones."""
        return replace(
            self, d_model=self.d_model * factor, seq_len=self.seq_len * factor, vocab_size=self.vocab_size * factor
        )


TINY = SampleSize(64, 2, 512, 32, 1)
MIDDLE = SampleSize(256, 4, 2048, 128, 2)
WIDE = SampleSize(512, 2, 2048, 256, 1)
HEADED = SampleSize(256, 2, 8192, 256, 2)
DEEP = SampleSize(512, 4, 2048, 256, 1)  # stages compute much longer than their actions take; caches hold no weights
TALL = SampleSize(512, 1, 2048, 256, 4)  # many tokens for each weight: kernels cost more than reading the weights
SINGLE = (
    TINY,
    replace(TINY, n_layers=6),
    replace(TINY, style="llama", n_layers=4),
    replace(TINY, vocab_size=4096, seq_len=128),
    SampleSize(128, 4, 4096, 256, 2),
    MIDDLE,
    HEADED,
    replace(MIDDLE, style="llama"),
    WIDE,
    replace(WIDE, n_layers=1, vocab_size=8192),
    replace(MIDDLE, n_layers=2, micro_batch_size=8),
    TALL,
    DEEP,
)
GPU_FACTOR = 4  # times as wide and as long on a GPU


@dataclass(frozen=True)
class EngineTask:
    """A sample to measure: its size and the settings of its layout."""

    size: SampleSize
    parallel: ParallelConfig
    micro_batches: int = 2


def alone_tasks(device: torch.device, precision: str) -> list[EngineTask]:
    """The samples of one process, also with recomputation."""
    parallel = ParallelConfig(precision=precision)  # type: ignore[arg-type]
    found = [EngineTask(size, parallel) for size in SINGLE]
    for recompute in ("selective", "full"):
        again = replace(parallel, recompute=recompute)
        found += [EngineTask(size, again) for size in (TINY, MIDDLE, WIDE)]
    return [_scaled(task, device) for task in found]


def group_tasks(device: torch.device, precision: str, ranks: int) -> list[EngineTask]:
    """The samples of a group of ranks: each axis with its modes, at a tiny size and at two larger ones."""
    plain = ParallelConfig(precision=precision)  # type: ignore[arg-type]
    tensor, data = replace(plain, tensor=ranks, data=1), replace(plain, data=ranks)
    found = [EngineTask(size, tensor) for size in (TINY, MIDDLE, HEADED, WIDE, TALL)]
    for zero in (0, 1, 2, 3):
        found += [EngineTask(size, replace(data, zero_stage=zero), 3) for size in (TINY, MIDDLE, WIDE)]  # type: ignore[arg-type]
    for schedule in ("1f1b", *SEVERAL_STAGES):
        stages = ranks * (2 if schedule in SEVERAL_STAGES else 1)
        parallel = replace(plain, pipeline=ranks, data=1, schedule=schedule)  # type: ignore[arg-type]
        for size in (TINY, DEEP):
            found.append(EngineTask(replace(size, n_layers=max(size.n_layers, stages)), parallel, 2 * ranks))
    return [_scaled(task, device) for task in found]


def _scaled(task: EngineTask, device: torch.device) -> EngineTask:
    return replace(task, size=task.size.times(GPU_FACTOR)) if device.type == "cuda" else task


class SampleRun:
    """The engine of one sample on this rank, and the seconds of its phases in each round."""

    def __init__(self, task: EngineTask, device: torch.device) -> None:
        size, parallel = task.size, task.parallel
        self.task, self.device = task, device
        ranks = dist.get_world_size()
        heads = max(2, size.d_model // 64, ranks)
        model = model_of(size.style, size.d_model, size.n_layers, heads, size.vocab_size, size.seq_len)
        sequences = task.micro_batches * size.micro_batch_size
        data = parallel.data or 1
        batch = BatchConfig(size.micro_batch_size, sequences * size.seq_len * data)
        self.layout = resolve_layout(parallel, batch, model=model, seq_len=size.seq_len, world_size=ranks)
        settings = EngineSettings(
            model, parallel, self.layout, OptimizerConfig(LEARNING_RATE), size.micro_batch_size, seed=1
        )
        self.engine: Any = build_engine(settings, objective=NextToken(), device=device)  # its stages are timed
        tokens = torch.randint(0, size.vocab_size, (sequences, size.seq_len + 1))
        self.batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        self.micro_batch = next(self.batch.split(size.micro_batch_size)).to(device)
        self.spans: dict[str, list[float]] = {"forward": [], "backward": [], "step": [], "update": []}
        self.model = model

    def round(self, watch: Stopwatch, *, phases: bool) -> None:
        """One step, and with `phases` before it forward and backward of single micro-batches."""
        with kernel_order(self.device):
            if phases:
                self._phases(watch)
            if dist.get_world_size() > 1:
                wait_for_all()
            self.spans["step"].append(watch.seconds(lambda: self.engine.forward_backward(self.batch)))
            self.spans["update"].append(watch.seconds(lambda: self.engine.optimizer_step(LEARNING_RATE)))

    def _phases(self, watch: Stopwatch) -> None:
        """Forward and backward with gathered weights, and without what FSDP does at the end of a step."""
        stage, batch, held = self.engine.stages[0], self.micro_batch, list[torch.Tensor]()
        for _ in range(2):
            prepare_backward(stage, last=False, zero_stage=1)  # type: ignore[arg-type]
            self.spans["forward"].append(watch.seconds(lambda: held.append(stage(batch.inputs, batch))))
            self.spans["backward"].append(watch.seconds(held.pop().backward))
        stage.totals = []

    def forget(self) -> None:
        """Drop the times so far: a first step allocates memory and builds what later ones use."""
        for spans in self.spans.values():
            spans.clear()

    def sample(self, watch: Stopwatch) -> EngineSample:
        """The medians."""
        size, layout, parallel = self.task.size, self.layout, self.task.parallel
        found = {name: watch.median(spans) if spans else 0.0 for name, spans in self.spans.items()}
        return EngineSample(
            parallel.precision,
            size.style,
            size.d_model,
            size.n_layers,
            self.model.n_heads,
            size.vocab_size,
            size.seq_len,
            size.micro_batch_size,
            self.task.micro_batches,
            layout.split,
            layout.tensor,
            layout.pipeline,
            layout.data,
            parallel.zero_stage,
            parallel.schedule,
            RECOMPUTE[parallel.recompute],
            len(self.engine.parameters),
            **found,
        )


def measure_samples(
    tasks: list[EngineTask], device: torch.device, watch: Stopwatch, *, rounds: int
) -> Iterator[EngineSample]:
    """Measure all samples in alternating rounds. All ranks of the process group must call it."""
    runs = [SampleRun(task, device) for task in tasks]
    alone = dist.get_world_size() == 1
    for run in runs:
        run.round(watch, phases=alone)
        run.forget()
    for _ in range(rounds):
        for run in runs:
            run.round(watch, phases=alone)
    yield from (run.sample(watch) for run in runs)
