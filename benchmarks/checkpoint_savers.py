"""The contenders of checkpoint_saving.py: one engine and one training step for all, and each its own way to save.

torchtitan's is its CheckpointManager, as its trainer makes and calls it, over this engine's module and optimizer.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

PLAIN = "plain writer"
MICRO_BATCH = 4
PLAIN_BLOCK_BYTES = 16 * 2**20
STATE: dict[str, object] = {"step": 0, "tokens_seen": 0}


@dataclass(frozen=True)
class Setting:
    """What all contenders share. `steps`: without a save, before each save, to compare with."""

    model: ModelConfig
    sequences: int
    steps: int

    @property
    def tensor_bytes(self) -> int:
        """Weights and two moments, in fp32."""
        return 3 * 4 * self.model.parameters


class Saver(Protocol):
    """One way to save an engine into a directory."""

    def start(self, step: int) -> None:
        """Save or begin to: training goes on when this returns."""
        ...

    def is_done(self) -> bool:
        """Whether the save that was started is on disk."""
        ...


class Background:
    """What the training loop does with checkpoint.in_background, its default."""

    def __init__(self, engine: NativeEngine, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        engine.checkpoints.shared.prepare(directory)

    def start(self, step: int) -> None:
        self.engine.checkpoints.shared.start_save(self.directory, step=step, state=STATE, keep=Retention(1))

    def is_done(self) -> bool:
        results = self.engine.checkpoints.shared.finished(wait=False)
        assert all(result.error is None for result in results), results
        return bool(results)


class Waiting:
    """The same loop without it."""

    def __init__(self, engine: NativeEngine, directory: Path) -> None:
        self.engine, self.directory = engine, directory

    def start(self, step: int) -> None:
        self.engine.checkpoints.shared.save(self.directory, step=step, state=STATE, keep=Retention(1))

    def is_done(self) -> bool:
        return True


class Titan:
    """torchtitan's CheckpointManager; `mode`: its checkpoint.async_mode, of which "disabled" waits."""

    def __init__(self, engine: NativeEngine, directory: Path, *, mode: str) -> None:
        from torchtitan.components.checkpoint import CheckpointManager
        from torchtitan.config import Checkpoint

        config = Checkpoint(enable=True, interval=1, async_mode=mode, keep_latest_k=0)
        self.manager = CheckpointManager(
            dataloader=Small(),
            model_parts=list(engine.stages),
            optimizers=TitanOptimizer(engine),
            lr_schedulers=Small(),
            states={"train_state": Small()},
            checkpoint_config=config,
            sd_adapter=None,
            base_folder=str(directory),
        )

    def start(self, step: int) -> None:
        self.manager.save(step)

    def is_done(self) -> bool:
        future = self.manager.save_future
        if future is not None and future.done():
            future.result()
        return future is None or future.done()


class Small:
    """Stands for what torchtitan saves besides tensors: loader, schedule, counters."""

    def __init__(self) -> None:
        self.step = torch.tensor(0)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class TitanOptimizer:
    """What its OptimizersContainer saves and loads, of the optimizer that this engine made."""

    def __init__(self, engine: NativeEngine) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        self.module, self.optimizer = engine.stages[0], engine.optimizer
        self.options = StateDictOptions(flatten_optimizer_state_dict=True)

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return dict(get_optimizer_state_dict(self.module, self.optimizer, options=self.options))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(self.module, self.optimizer, optim_state_dict=state, options=self.options)


TRAINERS: dict[str, Callable[[NativeEngine, Path], Saver]] = {
    "background": Background,
    "waiting": Waiting,
    "torchtitan async": lambda engine, directory: Titan(engine, directory, mode="async"),
    "torchtitan waiting": lambda engine, directory: Titan(engine, directory, mode="disabled"),
}
PEERS = [name for name in TRAINERS if name.startswith("torchtitan")]


def block_of(name: str, setting: Setting, directory: Path) -> Callable[[], dict[str, Any]]:
    """Build a contender; a function that measures one save beside training and one alone."""
    directory.mkdir(parents=True)
    if name == PLAIN:
        return plain_block(setting, directory)
    engine = build_engine(setting)
    train = trainer(engine, setting)
    saver = TRAINERS[name](engine, directory)
    saves = 0
    for _ in range(2):
        train()
    save_alone(saver, step=1)  # what a first save sets up is no part of the others

    def block() -> dict[str, Any]:
        nonlocal saves
        saves += 2
        empty(directory)
        step_s = statistics.median(timed(train) for _ in range(setting.steps))
        cpu_started_at = time.process_time()
        stall_s = timed(lambda: saver.start(saves))
        stall_cpu_s = time.process_time() - cpu_started_at
        beside_s = [timed(train)]
        while not saver.is_done():
            beside_s.append(timed(train))
        written_bytes = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        empty(directory)
        slowed_s = sum(beside_s) - len(beside_s) * step_s
        return {
            "step_s": step_s,
            "stall_s": stall_s,
            "stall_cpu_s": stall_cpu_s,
            "stall_share": stall_s / step_s,
            "cost_share": (stall_s + slowed_s) / step_s,
            "steps_beside": len(beside_s),
            "write_s": save_alone(saver, step=saves + 1),
            "bytes": written_bytes,
        }

    return block


def plain_block(setting: Setting, directory: Path) -> Callable[[], dict[str, Any]]:
    """As many bytes as a checkpoint has, in one file, by large writes and one fsync."""
    data = torch.randn(setting.tensor_bytes // 4).view(torch.uint8).numpy().data

    def write() -> None:
        with open(directory / "data", "wb", buffering=0) as file:
            for start in range(0, len(data), PLAIN_BLOCK_BYTES):
                file.write(data[start : start + PLAIN_BLOCK_BYTES])
            os.fsync(file.fileno())

    def block() -> dict[str, Any]:
        empty(directory)
        return {"write_s": timed(write), "bytes": len(data)}

    block()
    return block


def build_engine(setting: Setting) -> NativeEngine:
    """The engine that `triaxial train` builds for one process."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    batch = BatchConfig(MICRO_BATCH, setting.sequences * setting.model.n_ctx)
    parallel = ParallelConfig(precision="fp32")
    layout = resolve_layout(parallel, batch, model=setting.model, seq_len=setting.model.n_ctx, world_size=1)
    settings = EngineSettings(
        model=setting.model,
        parallel=parallel,
        layout=layout,
        optimizer=OptimizerConfig(learning_rate=6e-4),
        micro_batch_size=MICRO_BATCH,
        seed=1234,
    )
    return NativeEngine(settings, objective=NextToken(), device=torch.device("cpu"))


def trainer(engine: NativeEngine, setting: Setting) -> Callable[[], None]:
    """A function that does one step, always on the same batch."""
    tokens = torch.randint(0, setting.model.vocab_size, (setting.sequences, setting.model.n_ctx + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def train() -> None:
        engine.forward_backward(batch)
        engine.optimizer_step(6e-4)

    return train


def save_alone(saver: Saver, *, step: int) -> float:
    """Seconds from the start of a save until it is on disk, while nothing else is done."""
    started_at = time.perf_counter()
    saver.start(step)
    while not saver.is_done():
        time.sleep(0.002)
    return time.perf_counter() - started_at


def timed(action: Callable[[], None]) -> float:
    started_at = time.perf_counter()
    action()
    return time.perf_counter() - started_at


def empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
