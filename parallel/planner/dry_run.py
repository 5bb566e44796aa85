"""Measure what one rank of a layout holds and sends in a training step, without the hardware.

The rank's real code runs on fake tensors with a fake process group: no memory for tensors, no peers, no arithmetic.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.data.config import DataConfig
from gpt.data.sampling import made_up_samples
from gpt.losses.batch import Batch
from gpt.training.engine import Engine
from gpt.training.objective import Objective, ReferencedObjective
from parallel.axes.gradients import local
from parallel.axes.stage import ModelStage
from parallel.engines.choose import build_engine
from parallel.engines.optimizer_state import OptimizerState
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh, build_mesh
from parallel.planner.memory import MemoryTracker, tracking
from parallel.planner.traffic import CollectiveCounter, CollectiveKind, Traffic, extrapolated

MAX_BLOCK_PASSES = 200  # a step with more passes through a block is extrapolated from two shorter ones


class MeasurableEngine(Engine, Protocol):
    """An engine whose modules, parameters and optimizer can be looked at."""

    stages: list[ModelStage]
    parameters: list[tuple[str, nn.Parameter]]
    optimizer: OptimizerState


@dataclass(frozen=True)
class RankReport:
    """Memory and traffic of a rank in a step of `micro_batches`.

    `gradient_bytes` are those of reduced gradients, which the optimizer reads. `peak_bytes` counts all tensors at once.
    `micro_batches_run` has one number if the whole step was run, and two if it was extrapolated from shorter steps.
    """

    rank: int
    pipeline_rank: int
    stages: tuple[int, ...]
    layers: tuple[int, ...]  # indices of the blocks in the model
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_activation_bytes: int
    peak_bytes: int
    traffic: dict[CollectiveKind, Traffic]
    micro_batches: int
    micro_batches_run: tuple[int, ...]


def measure_rank(
    settings: EngineSettings, *, rank: int, data: DataConfig, objective: Objective, runs: tuple[int, ...] | None = None
) -> RankReport:
    """Measure one training step of this rank, as `measure_steps` and `extrapolated_report` do.

    `runs`: numbers of micro-batches to run; None takes those of `micro_batches_to_run`, and one number runs the step as
    it is.
    """
    reports = measure_steps(
        settings, rank=rank, runs=runs or micro_batches_to_run(settings), data=data, objective=objective
    )
    return extrapolated_report(reports, settings.layout.micro_batches)


def measure_steps(
    settings: EngineSettings,
    *,
    rank: int,
    runs: Iterable[int],
    data: DataConfig,
    objective: Objective,
    advance: Callable[[], None] = lambda: None,
) -> list[RankReport]:
    """Measure a training step of this rank with each of these numbers of micro-batches.

    No process group may exist: this creates a fake one and destroys it. Call it once per process, because DTensor
    remembers groups that were destroyed.

    The batch is what `objective` makes of samples as `data` describes them; no file is read. Blocks are not compiled
    and nothing is offloaded; neither changes what is sent or which shards are held. `advance` is called after each
    forward pass through a stage.
    """
    parallel = dataclasses.replace(settings.parallel, compile=False, async_tensor=False, offload=False)
    with fake_process_group(rank, settings.layout.world_size):
        mesh = build_mesh(settings.layout, torch.device("cpu"))  # outside the fake mode, because its ranks are read
        reports = []
        for micro_batches in runs:
            shortened = dataclasses.replace(settings.layout, micro_batches=micro_batches)
            short = dataclasses.replace(settings, parallel=parallel, layout=shortened)
            reports.append(_run_step(short, mesh, data=data, objective=objective, advance=advance))
    return reports


def extrapolated_report(reports: Sequence[RankReport], micro_batches: int) -> RankReport:
    """Return the report of a step of `micro_batches`: the only one, or a line through the two of shorter steps.

    This is exact for traffic, and for memory once the schedule has filled its pipeline.
    """
    few, more = min(reports, key=_micro_batches), max(reports, key=_micro_batches)
    if few.micro_batches == micro_batches:
        return few
    times = (micro_batches - more.micro_batches) // (more.micro_batches - few.micro_batches)
    return dataclasses.replace(
        more,
        peak_activation_bytes=more.peak_activation_bytes
        + times * (more.peak_activation_bytes - few.peak_activation_bytes),
        peak_bytes=more.peak_bytes + times * (more.peak_bytes - few.peak_bytes),
        traffic=extrapolated(few.traffic, more.traffic, times),
        micro_batches=micro_batches,
        micro_batches_run=(few.micro_batches, more.micro_batches),
    )


def micro_batches_to_run(settings: EngineSettings) -> tuple[int, ...]:
    """Return the numbers of micro-batches to run: the real number, or two smaller ones to extrapolate from.

    From the first of the two on, each further micro-batch (or each round of them, if the schedule goes by rounds) must
    add the same amount. Schedules with several stages a rank reach their usual peak in the third round: starting at the
    second, DualPipeV's peak came out three times too high.
    """
    layout = settings.layout
    whole = layout.micro_batches
    by_one = settings.parallel.schedule in ("1f1b", "gpipe") or layout.pipeline == 1
    first, more = (layout.pipeline + 1, 1) if by_one else (3 * layout.pipeline, layout.pipeline)
    blocks = whole * -(-settings.model.n_layers // layout.pipeline)
    if blocks <= MAX_BLOCK_PASSES or whole <= first + more or (whole - first) % more:
        return (whole,)
    return (first, first + more)


@contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[None]:
    """Make this process a rank of a default process group that sends nothing, while inside."""
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  registers the backend

    dist.init_process_group("fake", store=HashStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def held_bytes(engine: MeasurableEngine) -> dict[str, int]:
    """Return what an engine holds between steps, and its gradients if there are any. Works for real engines too."""
    parameters = [parameter for _, parameter in engine.parameters]
    state = engine.optimizer.all_tensors()
    return {
        "parameters": sum(local(parameter).numel() for parameter in parameters),
        "parameter_bytes": _bytes(parameters),
        "gradient_bytes": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer_bytes": _bytes(state),
    }


def _run_step(
    settings: EngineSettings, mesh: Mesh, *, data: DataConfig, objective: Objective, advance: Callable[[], None]
) -> RankReport:
    layout = settings.layout
    real = objective.batch(made_up_samples(layout.micro_batches * settings.micro_batch_size, data))
    real = dataclasses.replace(real, row_keys=torch.zeros(len(real), dtype=torch.int32))
    if isinstance(objective, ReferencedObjective):
        real = objective.with_reference(real, torch.zeros(real.inputs.shape[:2]))
    with FakeTensorMode(allow_non_fake_inputs=True), _FakeScalars():  # type: ignore[no-untyped-call]
        built = build_engine(settings, objective=objective, device=mesh.device, init_weights=False, mesh=mesh)
        engine = cast(MeasurableEngine, built)
        for stage in engine.stages:
            stage.register_forward_hook(lambda *_: advance())
        batch = _fake_batch(real)
        state = engine.optimizer.all_tensors()
        reference = _reference_parameters(settings, mesh, objective)
        kept = [*(parameter for _, parameter in engine.parameters), *state, *reference]
        tracker = MemoryTracker(engine.stages, kept)
        with ExitStack() as stack:
            counter = stack.enter_context(CollectiveCounter(mesh))
            stack.enter_context(tracking(tracker))
            engine.forward_backward(batch)
            held = held_bytes(engine)
            held["parameter_bytes"] += _bytes(reference)
            assert settings.optimizer is not None, "a dry run is of training"
            engine.optimizer_step(settings.optimizer.learning_rate)
    blocks = {int(name.split(".")[1]) for name, _ in engine.parameters if name.startswith("blocks.")}
    return RankReport(
        rank=dist.get_rank(),
        pipeline_rank=mesh.pipeline_rank,
        stages=mesh.stages,
        layers=tuple(sorted(blocks)),
        **held,
        peak_activation_bytes=tracker.peak_activation_bytes,
        peak_bytes=tracker.peak_bytes,
        traffic=dict(sorted(counter.traffic.items())),
        micro_batches=layout.micro_batches,
        micro_batches_run=(layout.micro_batches,),
    )


def _reference_parameters(settings: EngineSettings, mesh: Mesh, objective: Objective) -> list[nn.Parameter]:
    """The parameters of the frozen reference model; none if the objective has no such model.

    Its forward pass is not run: it sends less than the training step, and peaks lower.
    """
    if not isinstance(objective, ReferencedObjective):
        return []
    frozen = dataclasses.replace(settings, optimizer=None, adapter=None, residual_dropout=0.0)
    built = build_engine(frozen, objective=objective, device=mesh.device, init_weights=False, mesh=mesh)
    return [parameter for _, parameter in cast(MeasurableEngine, built).parameters]


def _fake_batch(batch: Batch) -> Batch:
    """Return fake tensors like those of a real batch. Call it in the fake mode.

    Targets like the inputs share their storage, so that the tokens count once in the peaks.
    """
    fakes = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in batch.tensors().items()}
    if (batch.inputs.shape, batch.inputs.dtype) == (batch.targets.shape, batch.targets.dtype):
        fakes["targets"] = fakes["inputs"]
    return Batch.from_tensors(fakes)


def _micro_batches(report: RankReport) -> int:
    return report.micro_batches


class _FakeScalars(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets code run in a FakeTensorMode although it reads values.

    Operations on real tensors from before the mode (the ranks of the mesh) stay real. Reading a number of a fake tensor
    (a loss, a norm, the pipeline's vote that shapes are known) gives 1.
    """

    supports_higher_order_operators = True  # FlexAttention

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        kwargs = kwargs or {}
        if any(issubclass(t, FakeTensor) for t in types):
            return 1 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)
