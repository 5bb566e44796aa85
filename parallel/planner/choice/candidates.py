"""Every layout of a number of GPUs that the rules of `parallel/layout/` allow, and the others with their error."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.engines.capabilities import check_engine
from parallel.layout.config import V_SHAPED, ZERO_BUBBLE, BatchConfig, ParallelConfig, splits_backward
from parallel.layout.layout import Layout, resolve_layout
from parallel.planner.hardware.tables import Cluster, Stack
from parallel.planner.step_time.job import Job, Recompute

MAX_STAGES = 8  # of a rank; more only add messages
MICRO_BATCH_SIZES = (1, 2, 4, 8, 16)
RECOMPUTE: dict[str, Recompute] = {"none": "none", "selective": "elementwise", "full": "full"}


@dataclass(frozen=True)
class PlanRequest:
    """The training to plan. `batch` gives the global batch; `parallel` what the search does not choose.

    With `restarts_positions`, `seq_len` may exceed the context of the model, as for rankings.
    """

    model: ModelConfig
    batch: BatchConfig
    seq_len: int
    parallel: ParallelConfig
    cluster: Cluster
    stack: Stack
    restarts_positions: bool = False


@dataclass(frozen=True)
class Candidate:
    """A layout that obeys every rule, with all its settings."""

    parallel: ParallelConfig
    micro_batch_size: int
    layout: Layout
    job: Job


@dataclass(frozen=True)
class Refusal:
    """A layout that cannot run, and the message of the one rule that it breaks."""

    parallel: ParallelConfig
    micro_batch_size: int
    reason: str


def candidates(request: PlanRequest, gpus: int) -> tuple[list[Candidate], list[Refusal]]:
    """Return the layouts of exactly `gpus` GPUs."""
    possible: list[Candidate] = []
    refused: list[Refusal] = []
    for parallel, size in _choices(request, gpus):
        try:
            base = candidate(request, parallel, size)
        except ConfigError as error:
            refused.append(Refusal(parallel, size, str(error)))
            continue
        for each in _shardings(request, base):
            try:
                _check_sharding(request, each.parallel)
            except ConfigError as error:
                refused.append(Refusal(each.parallel, size, str(error)))
                continue
            possible.append(each)
    return possible, refused


def candidate(request: PlanRequest, parallel: ParallelConfig, micro_batch_size: int) -> Candidate:
    """Resolve one layout whose sizes are all given. ConfigError: the rule that it breaks."""
    node = request.cluster.node
    if parallel.tensor > node:
        raise ConfigError(
            f"parallel.tensor = {parallel.tensor} is invalid here: tensor ranks exchange messages in every block, and "
            f"a node has {node} GPUs. Use at most {node}"
        )
    check_engine(parallel, model=request.model)
    batch = replace(request.batch, micro_batch_size=micro_batch_size)
    world_size = parallel.tensor * parallel.pipeline * (parallel.data or 1)
    layout = resolve_layout(
        parallel,
        batch,
        model=request.model,
        seq_len=request.seq_len,
        world_size=world_size,
        restarts_positions=request.restarts_positions,
    )
    return Candidate(parallel, micro_batch_size, layout, job_of(request, parallel, layout, micro_batch_size))


def job_of(request: PlanRequest, parallel: ParallelConfig, layout: Layout, micro_batch_size: int) -> Job:
    """The step of a layout, for the time model."""
    return Job(
        request.model,
        request.seq_len,
        micro_batch_size,
        layout.micro_batches,
        layout.split,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        shard=layout.data_shard,
        zero=parallel.zero_stage,
        schedule=parallel.schedule,
        v_shaped=layout.v_shaped,
        recompute=RECOMPUTE[parallel.recompute],
        sequence_parallel=parallel.sequence_parallel,
        precision=parallel.precision,
        overlap_tensor=parallel.async_tensor,
        whole_backward=parallel.schedule == "dualpipev" and not splits_backward(parallel),
    )


def _choices(request: PlanRequest, gpus: int) -> Iterator[tuple[ParallelConfig, int]]:
    """Sizes, schedules, recomputation and micro-batch sizes; ZeRO stage 1."""
    given = replace(request.parallel, data_shard=None, split=None, zero_stage=1, offload=False)
    for tensor in _divisors(gpus):
        if tensor > 2 * request.cluster.node:
            continue
        for pipeline in _divisors(gpus // tensor):
            if pipeline > request.model.n_layers + 2:
                continue
            sized = replace(given, tensor=tensor, pipeline=pipeline, data=gpus // tensor // pipeline)
            for schedule, stages in _schedules(request.model, pipeline):
                for recompute in RECOMPUTE:
                    for size in MICRO_BATCH_SIZES:
                        compiled = request.parallel.compile and schedule not in ZERO_BUBBLE
                        yield (
                            replace(
                                sized,
                                schedule=schedule,  # type: ignore[arg-type]
                                stages_per_rank=stages,
                                recompute=recompute,  # type: ignore[arg-type]
                                compile=compiled,
                                async_tensor=request.parallel.async_tensor and compiled and tensor > 1,
                            ),
                            size,
                        )


def _schedules(model: ModelConfig, pipeline: int) -> Iterator[tuple[str, int | None]]:
    yield "1f1b", None
    if pipeline == 1:
        return
    for schedule in V_SHAPED:
        yield schedule, None
    for stages in range(2, MAX_STAGES + 1):
        if model.n_layers % (pipeline * stages) in (0, pipeline * stages - 2) or stages == 2:
            yield "interleaved_1f1b", stages
    yield "interleaved_zero_bubble", 2


def _check_sharding(request: PlanRequest, parallel: ParallelConfig) -> None:
    """ConfigError: the engine does not take this ZeRO stage. The native engine takes all where it takes stage 1."""
    if parallel.engine != "native":
        check_engine(parallel, model=request.model)


def _shardings(request: PlanRequest, base: Candidate) -> Iterator[Candidate]:
    """The ZeRO stages of a layout; 3 also within a node. The rules of a layout are the same for all."""
    data = base.layout.data
    inside = request.cluster.node // base.layout.tensor
    yield base
    if data == 1:
        return
    for zero in (0, 2, 3):
        shards: list[int | None] = [None]
        if zero == 3 and 1 < inside < data and data % inside == 0:
            shards.append(inside)
        for shard in shards:
            parallel = replace(base.parallel, zero_stage=zero, data_shard=shard)  # type: ignore[arg-type]
            layout = replace(base.layout, data_shard=1 if zero == 0 else shard or data)
            job = job_of(request, parallel, layout, base.micro_batch_size)
            yield Candidate(parallel, base.micro_batch_size, layout, job)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
