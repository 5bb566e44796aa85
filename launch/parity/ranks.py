"""Train one layout after the other for `triaxial parity`, each in fresh processes.

Fresh processes are needed because torch's cache keeps device meshes after their process groups have ended. After about
twenty layouts in one process, torch 2.13 used groups that no longer existed.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.temporary import temporary_folder
from gpt.model.attention import kernel_order
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import BatchReader
from gpt.training.config import Retention
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from gpt.training.schedule import learning_rate
from launch.config.run_config import RunConfig, as_dict, from_dict, layout_of
from launch.parity.gradients import Digest, gradient_digests
from launch.processes.environment import ClusterEnvironment
from launch.processes.local_ranks import RankFailed, fork_server, run_ranks
from launch.processes.rank_process import keep_freed_memory
from launch.processes.sealing import seal_object_collectives
from launch.training.build import build_engine, build_objective, build_run, pick_device
from launch.training.resume import fresh_start
from parallel.agreement import wait_for_all
from parallel.layout.gloo_groups import use_one_gloo_worker

PRELOAD = ("launch.parity.ranks",)  # imports torch and everything that a rank needs
LATER_STEPS = 5  # steps after a checkpoint that another engine loads


@dataclass(frozen=True)
class LayoutTask:
    """One layout to train: its name, its number of ranks, and the recipe with this layout in it.

    `saves`: a name for the checkpoint to save after the last step; LATER_STEPS follow. `loads`: train these steps only,
    from the checkpoint of this name.
    """

    name: str
    world_size: int
    config: RunConfig
    saves: str = ""
    loads: str = ""


@dataclass(frozen=True)
class LayoutResult:
    """The result of one layout; losses and norms have one entry per step.

    `gradients`: the digest of each parameter's gradient at step 1. `later_losses`: of the steps after a checkpoint.
    """

    name: str
    losses: list[float]
    grad_norms: list[float]
    initial_weights: str
    seconds: float
    gradients: dict[str, Digest] = field(default_factory=dict)
    later_losses: list[float] = field(default_factory=list)


def measure_all(tasks: Sequence[LayoutTask], *, steps: int) -> Iterator[LayoutResult]:
    """Yield the result of each layout when it is done. ConfigError and RankFailed name the layout."""
    context = fork_server(PRELOAD)
    with temporary_folder() as temporary:
        for i, task in enumerate(tasks):
            folder = temporary.path / str(i)
            folder.mkdir()
            table = {**vars(task), "config": as_dict(task.config), "steps": steps}
            for key in ("saves", "loads"):
                table[key] = str(temporary.path / f"saved-{table[key]}") if table[key] else ""
            (folder / "task.json").write_text(json.dumps(table), encoding="utf-8")
            try:
                run_ranks(context, train_rank, [str(folder)], nproc=task.world_size, logs=folder / "logs")
            except (ConfigError, RankFailed) as error:
                raise type(error)(f"layout {task.name}: {error}") from None
            yield LayoutResult(**decode_json((folder / "result.json").read_text(encoding="utf-8")))


def train_rank(rank: int, folder: str) -> None:
    """Train one rank of the layout in `folder`/task.json; rank 0 writes result.json there."""
    started_at = time.perf_counter()
    table = decode_json(Path(folder, "task.json").read_text(encoding="utf-8"))
    world_size, config = table["world_size"], from_dict(table["config"])
    here = ClusterEnvironment(rank=rank, local_rank=rank, world_size=world_size, local_world_size=world_size)
    device = pick_device(config, here)
    if device.type == "cpu":
        keep_freed_memory()
    seal_object_collectives()
    use_one_gloo_worker()
    store = FileStore(str(Path(folder, "store")), world_size)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=config.run.collective_timeout_s),
    )
    layout, objective = layout_of(config, world_size), build_objective(config)
    start, ledger = fresh_start(config), TimeLedger(None)
    engine = build_engine(config, layout, device, start, ledger, objective=objective, keep_reference=False)
    digest = engine.weights_digest()
    with kernel_order(device, config.parallel.attention):
        measured = _measure(engine, RecipeSteps(engine, config, objective), table)
    if rank == 0:
        result = LayoutResult(
            table["name"], **measured, initial_weights=digest, seconds=time.perf_counter() - started_at
        )
        Path(folder, "result.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
    wait_for_all()
    dist.destroy_process_group()


def _measure(engine: Engine, train: "RecipeSteps", table: dict[str, Any]) -> dict[str, Any]:
    """Losses, norms and gradients of a task, by the fields of LayoutResult; the same on all ranks."""
    steps, later = table["steps"], range(table["steps"], table["steps"] + LATER_STEPS)
    store = engine.checkpoints.shared
    if loads := table.get("loads"):
        assert store.load_newest(Path(loads), at_most=steps) is not None, f"no checkpoint in {loads}"
        return {"losses": [], "grad_norms": [], "later_losses": train(later)[0]}
    losses, norms = train(range(steps))
    measured = {"losses": losses, "grad_norms": norms, "gradients": train.gradients}
    if saves := table.get("saves"):
        store.save(Path(saves), step=steps, state={}, keep=Retention(1))
        measured["later_losses"] = train(later)[0]
    return measured


class RecipeSteps:
    """The recipe's steps on one engine, by the recipe's own data order and schedule."""

    def __init__(self, engine: Engine, config: RunConfig, objective: Objective) -> None:
        self.engine, self.seed = engine, config.run.seed
        self.run = build_run(config, {}, peak_flops_per_s=0.0)
        data = TrainingData(config.data, seed=config.run.seed, vocab_size=config.model.vocab_size)
        self.reader = BatchReader(self.run, engine, data, objective)
        self.skipped = SkippedData.stated(config.data.skip)
        self.gradients: dict[str, Digest] = {}  # of the first step

    def __call__(self, steps: Iterable[int]) -> tuple[list[float], list[float]]:
        """Take steps, counted from 0; return their losses and gradient norms. Collective over all ranks."""
        losses, norms = [], []
        for step in steps:
            self.engine.forward_backward(self.reader.read(step, self.skipped))
            if step == 0:
                self.gradients = gradient_digests(self.engine, seed=self.seed)
            lr = learning_rate(self.run.schedule, self.run.peak_learning_rate, self.run.batch.tokens_seen(step + 1))
            result = self.engine.optimizer_step(lr)
            if result.skipped:
                raise ConfigError(f"step {step + 1}: the loss is {result.loss.mean}. Lower optimizer.learning_rate")
            losses.append(result.loss.mean)
            norms.append(result.gradient_norm)
        return losses, norms
