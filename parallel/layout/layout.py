"""How processes are arranged in three dimensions, and the rules an arrangement must obey; never starts anything."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.layout.config import SEVERAL_STAGES, V_SHAPED, ZERO_BUBBLE, BatchConfig, ParallelConfig
from parallel.layout.split import balanced_split, check_split


@dataclass(frozen=True)
class Layout:
    """A valid arrangement. Ranks count tensor fastest, then data, then pipeline, so that a node holds whole tensor
    groups first."""

    tensor: int
    pipeline: int
    data: int
    data_shard: int
    micro_batches: int  # per rank and step of the full batch
    split: tuple[int, ...]  # blocks of each pipeline stage, from the embedding to the head
    v_shaped: bool  # the second half of the stages lies on the ranks in backward order

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"

    @property
    def stages(self) -> int:
        return len(self.split)

    def layers_of(self, stage: int) -> range:
        """The blocks of a pipeline stage."""
        begin = sum(self.split[:stage])
        return range(begin, begin + self.split[stage])

    def stages_of(self, pipeline_rank: int) -> tuple[int, ...]:
        """The stages that a pipeline rank holds, in the model's order."""
        return tuple(stage for stage in range(self.stages) if self.rank_of(stage) == pipeline_rank)

    def rank_of(self, stage: int) -> int:
        """The pipeline rank that holds a stage: in rounds, or for two stages a rank as a V, 0 .. p-1 and back."""
        if self.v_shaped and stage >= self.pipeline:
            return self.stages - 1 - stage
        return stage % self.pipeline


def resolve_layout(
    parallel: ParallelConfig, batch: BatchConfig, *, model: ModelConfig, seq_len: int, world_size: int
) -> Layout:
    """The layout a configuration asks for on `world_size` processes; ConfigError names the rule that it breaks."""
    for key in ("tensor", "pipeline", "data", "data_shard", "stages_per_rank"):
        value = getattr(parallel, key)
        if value is not None and value < 1:
            raise ConfigError(f"parallel.{key} = {value} must be at least 1")
    data = _data_size(parallel, world_size)
    shard = _shard_size(parallel, data)
    _check_model(parallel, model, seq_len)
    _check_pipeline(parallel)
    split = _split(parallel, model, seq_len)
    micro_batches = _micro_batches(parallel, batch, seq_len=seq_len, data=data)
    v_shaped = parallel.pipeline > 1 and parallel.schedule in V_SHAPED
    return Layout(parallel.tensor, parallel.pipeline, data, shard, micro_batches, split, v_shaped)


def _check_pipeline(parallel: ParallelConfig) -> None:
    """Refuse what torch's schedules (2.13) cannot combine, or could only at a loss."""
    if parallel.pipeline == 1:
        return
    if parallel.zero_stage > 1:  # tried on pipeline 2 x data 2: same peaks, and weights gathered 4.2 times a step
        raise ConfigError(
            f"parallel.zero_stage = {parallel.zero_stage} with parallel.pipeline = {parallel.pipeline}: torch's "
            f"pipeline schedules keep a stage's weights and gradients whole until its last micro-batch, so 2 and 3 "
            f"would save no memory there; use parallel.zero_stage = 1"
        )
    if parallel.schedule not in ZERO_BUBBLE:
        return
    if parallel.compile:  # tried: the backward of a compiled block is one piece, and fails when half of it is asked for
        raise ConfigError(
            f"parallel.compile = true with parallel.schedule = '{parallel.schedule}': the backward of a compiled block "
            f"cannot be split into one of inputs and one of weights, which is what fills the bubble; use "
            f"parallel.compile = false, or parallel.schedule = 'interleaved_1f1b' or 'dualpipev'"
        )
    if parallel.recompute != "none":
        reason = {  # tried: under `full` a GPT block ran 10 times for each micro-batch, where 2 are needed
            "full": "the separate backward of weights would recompute a block once for each of its layers",
            "selective": "torch lets one backward pass use what is kept of a block, not one of inputs, then of weights",
        }
        raise ConfigError(
            f"parallel.recompute = '{parallel.recompute}' with parallel.schedule = '{parallel.schedule}': "
            f"{reason[parallel.recompute]}; use parallel.recompute = 'none', or parallel.schedule = "
            f"'interleaved_1f1b' or 'dualpipev'"
        )


def _split(parallel: ParallelConfig, model: ModelConfig, seq_len: int) -> tuple[int, ...]:
    """Blocks of each stage."""
    stages = parallel.pipeline * _stages_per_rank(parallel)
    if parallel.split is not None:
        return check_split(parallel.split, model, stages=stages)
    return balanced_split(model, stages=stages, seq_len=seq_len, recompute=parallel.recompute == "full")


def _stages_per_rank(parallel: ParallelConfig) -> int:
    if parallel.pipeline == 1:
        return 1
    schedule, wanted = parallel.schedule, parallel.stages_per_rank
    if schedule not in SEVERAL_STAGES:
        if wanted not in (None, 1):
            raise ConfigError(
                f"parallel.stages_per_rank = {wanted} with parallel.schedule = '{schedule}', which runs 1 stage a "
                f"rank; use 1, or one of {', '.join(SEVERAL_STAGES)}"
            )
        return 1
    if wanted == 1:
        raise ConfigError(
            f"parallel.stages_per_rank = 1 with parallel.schedule = '{schedule}', which is made for several stages a "
            f"rank; use 2, or parallel.schedule = '1f1b'"
        )
    if schedule in V_SHAPED and wanted not in (None, 2):
        raise ConfigError(
            f"parallel.stages_per_rank = {wanted} with parallel.schedule = '{schedule}', which lays 2 stages a rank "
            f"out as a V; use 2, or one of interleaved_1f1b, interleaved_zero_bubble"
        )
    return 2 if wanted is None else wanted


def check_device(parallel: ParallelConfig, device_type: str) -> None:
    """ConfigError where a setting asks for what only CUDA has."""
    for key, reason in (
        ("offload", "on a CPU weights and optimizer are in the host's memory already"),
        ("async_tensor", "it needs CUDA's symmetric memory"),
    ):
        if getattr(parallel, key) and device_type != "cuda":
            raise ConfigError(f"parallel.{key} = true with device '{device_type}': {reason}; set it to false")


def _data_size(parallel: ParallelConfig, world_size: int) -> int:
    inner = parallel.tensor * parallel.pipeline
    if parallel.data is None:
        if world_size % inner:
            raise ConfigError(
                f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} = {inner} does not divide "
                f"the {world_size} processes; start {_multiples(inner, world_size)} processes (--nproc on one machine)"
            )
        return world_size // inner
    product = inner * parallel.data
    if product != world_size:
        raise ConfigError(
            f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} x parallel.data "
            f"{parallel.data} = {product} is not the number of processes, {world_size}; start {product} processes "
            f"(--nproc on one machine) or leave parallel.data out, to take what is there"
        )
    return parallel.data


def _shard_size(parallel: ParallelConfig, data: int) -> int:
    shard = parallel.data_shard
    if parallel.zero_stage == 0:
        if shard not in (None, 1):
            raise ConfigError(
                f"parallel.data_shard = {shard} with parallel.zero_stage = 0: nothing is sharded; use 1, 2 or 3"
            )
        return 1
    if shard is None:
        return data
    _check_divides(data, shard, "the data-parallel size", "parallel.data_shard")
    return shard


def _check_model(parallel: ParallelConfig, model: ModelConfig, seq_len: int) -> None:
    if seq_len > model.n_ctx:
        raise ConfigError(f"data.seq_len = {seq_len} is longer than model.n_ctx = {model.n_ctx}")
    if parallel.async_tensor and not (parallel.compile and parallel.tensor > 1):
        raise ConfigError(
            f"parallel.async_tensor = true with parallel.compile = {str(parallel.compile).lower()} and parallel.tensor "
            f"= {parallel.tensor}: it is the compiler that splits tensor ranks' products and messages; set "
            f"parallel.compile = true and parallel.tensor to 2 or more, or parallel.async_tensor = false"
        )
    for name, number in (
        ("model.n_heads", model.n_heads),
        ("model.d_ff", model.ff_width),
        ("data.seq_len", seq_len),
        ("model.n_ctx", model.n_ctx),
    ):
        _check_divides(number, parallel.tensor, name, "parallel.tensor")
    rows = model.padded_vocab_size
    if not _leaves_none_empty(rows, parallel.tensor):
        near = _near(parallel.tensor, (tensor for tensor in range(1, rows + 1) if _leaves_none_empty(rows, tensor)))
        raise ConfigError(
            f"parallel.tensor = {parallel.tensor} leaves ranks without any of the vocabulary's {rows} rows "
            f"(model.vocab_size up to a multiple of model.vocab_multiple); nearest that do not: {near}"
        )


def _leaves_none_empty(rows: int, ranks: int) -> bool:
    """Whether shares of ceil(rows / ranks) give each rank some."""
    return -(-rows // ranks) * (ranks - 1) < rows


def _micro_batches(parallel: ParallelConfig, batch: BatchConfig, *, seq_len: int, data: int) -> int:
    """Of a step of the full batch; every size of the ramp is checked."""
    if batch.micro_batch_size < 1:
        raise ConfigError(f"batch.micro_batch_size = {batch.micro_batch_size} must be at least 1")
    *ramped, full = (level.step_tokens for level in batch.ramp.levels())
    for tokens in ramped:
        _micro_batches_of(tokens, parallel, batch, seq_len=seq_len, data=data, name="a step of the batch ramp, of")
    return _micro_batches_of(full, parallel, batch, seq_len=seq_len, data=data, name="batch.global_batch_tokens")


def _micro_batches_of(
    step_tokens: int, parallel: ParallelConfig, batch: BatchConfig, *, seq_len: int, data: int, name: str
) -> int:
    if step_tokens < seq_len or step_tokens % seq_len:
        raise ConfigError(
            f"{name} = {step_tokens} is not a multiple of data.seq_len = {seq_len}; "
            f"nearest: {_multiples(seq_len, step_tokens)}"
        )
    sequences = step_tokens // seq_len
    at_once = batch.micro_batch_size * data
    if sequences % at_once:
        raise ConfigError(
            f"batch.micro_batch_size {batch.micro_batch_size} x data-parallel size {data} = {at_once} sequences does "
            f"not divide the global batch of {sequences} sequences ({step_tokens} tokens); "
            f"{_near_micro_batches(sequences, data, batch.micro_batch_size, seq_len)}"
        )
    micro_batches = sequences // at_once
    _check_schedule(parallel, batch, micro_batches=micro_batches, micro_batch_tokens=at_once * seq_len)
    return micro_batches


def _check_schedule(
    parallel: ParallelConfig, batch: BatchConfig, *, micro_batches: int, micro_batch_tokens: int
) -> None:
    """Refuse a number of micro-batches that torch's schedule cannot order."""
    if parallel.pipeline == 1:
        return
    name, ranks, rule, allowed = parallel.schedule, parallel.pipeline, "", [micro_batches]
    if name in ("1f1b", "dualpipev"):
        least = ranks * _stages_per_rank(parallel)
        rule, allowed = "at least as many micro-batches a step as stages", [max(least, micro_batches)]
    elif name in ("interleaved_1f1b", "interleaved_zero_bubble"):
        # torch runs max(1, micro-batches // ranks) rounds of equally many micro-batches
        rule = "a number of micro-batches a step that is a multiple of its quotient by parallel.pipeline"
        allowed = [n for n in range(1, 2 * micro_batches + ranks) if n % max(1, n // ranks) == 0]
    if micro_batches in allowed:
        return
    near = _nearest(micro_batches, allowed)
    tokens = " or ".join(str(n * micro_batch_tokens) for n in near)
    raise ConfigError(
        f"parallel.schedule = '{name}' needs {rule}: {micro_batches} with parallel.pipeline = {ranks}; nearest: "
        f"{' or '.join(map(str, near))}, so batch.global_batch_tokens = {tokens}, or change batch.micro_batch_size = "
        f"{batch.micro_batch_size}"
    )


def _check_divides(number: int, divisor: int, name: str, divisor_name: str) -> None:
    if number % divisor == 0:
        return
    near = _near(divisor, (d for d in range(1, number + 1) if number % d == 0))
    raise ConfigError(f"{name} = {number} is not divisible by {divisor_name} = {divisor}; nearest that divide: {near}")


def _near_micro_batches(sequences: int, data: int, wanted: int, seq_len: int) -> str:
    if sequences % data:
        return (
            f"batch.global_batch_tokens nearest that does: {_multiples(wanted * data * seq_len, sequences * seq_len)}"
        )
    per_rank = sequences // data
    near = _near(wanted, (d for d in range(1, per_rank + 1) if per_rank % d == 0))
    return f"batch.micro_batch_size nearest that do: {near}"


def _near(wanted: int, allowed: Iterable[int]) -> str:
    return " or ".join(map(str, _nearest(wanted, allowed)))


def _nearest(wanted: int, allowed: Iterable[int]) -> list[int]:
    """Of `allowed`, which ascends, the last up to `wanted` and the first from it on."""
    values = list(allowed)
    below = [value for value in values if value <= wanted]
    above = [value for value in values if value >= wanted]
    return list(dict.fromkeys(below[-1:] + above[:1]))


def _multiples(unit: int, wanted: int) -> str:
    below, above = wanted // unit * unit, -(-wanted // unit) * unit
    return " or ".join(str(value) for value in dict.fromkeys((below, above)) if value)
