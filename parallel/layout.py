"""How processes are arranged in three dimensions, and the rules an arrangement must obey; never starts anything."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gpt.config import ModelConfig
from gpt.errors import ConfigError


@dataclass(frozen=True)
class ParallelConfig:
    """The three sizes and how each axis works. `data` None takes every process that tensor and pipeline leave.

    `zero_stage` 0 replicates weights and optimizer over data ranks. 1 shards both: weights are gathered and gradients
    reduced once a step. 2 reduces gradients into their shards after each micro-batch; 3 also gathers weights for each
    use and frees them after. `data_shard` is the number of data ranks that share one copy (None: all of them, or 1 for
    zero_stage 0): between the two lies hybrid sharding. `offload` keeps the shards of weights, gradients and optimizer
    in the host's memory and updates them there. `async_tensor` overlaps tensor ranks' messages with products.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int | None = None
    data_shard: int | None = None
    zero_stage: Literal[0, 1, 2, 3] = 1
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    recompute: Literal["none", "selective", "full"] = "none"
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    offload: bool = False
    async_tensor: bool = False


@dataclass(frozen=True)
class BatchConfig:
    """`micro_batch_size` sequences per rank and forward pass; `global_batch_tokens` over all ranks per step."""

    micro_batch_size: int
    global_batch_tokens: int


@dataclass(frozen=True)
class Layout:
    """A valid arrangement. Ranks count tensor fastest, then data, then pipeline, so that a node holds whole tensor
    groups first."""

    tensor: int
    pipeline: int
    data: int
    data_shard: int
    micro_batches: int  # per rank and step

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"

    def layers_of(self, stage: int, n_layers: int) -> range:
        """The blocks of a pipeline stage."""
        per_stage = n_layers // self.pipeline
        return range(stage * per_stage, (stage + 1) * per_stage)


def resolve_layout(
    parallel: ParallelConfig, batch: BatchConfig, *, model: ModelConfig, seq_len: int, world_size: int
) -> Layout:
    """The layout a configuration asks for on `world_size` processes; ConfigError names the rule that it breaks."""
    for key in ("tensor", "pipeline", "data", "data_shard"):
        value = getattr(parallel, key)
        if value is not None and value < 1:
            raise ConfigError(f"parallel.{key} = {value} must be at least 1")
    data = _data_size(parallel, world_size)
    shard = _shard_size(parallel, data)
    _check_model(parallel, model, seq_len)
    micro_batches = _micro_batches(parallel, batch, seq_len=seq_len, data=data)
    return Layout(parallel.tensor, parallel.pipeline, data, shard, micro_batches)


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
    _check_divides(model.n_layers, parallel.pipeline, "model.n_layers", "parallel.pipeline")
    if parallel.pipeline > 1 and parallel.zero_stage > 1:
        raise ConfigError(
            f"parallel.zero_stage = {parallel.zero_stage} with parallel.pipeline = {parallel.pipeline}: torch's "
            f"pipeline schedules keep a stage's weights and gradients whole until its last micro-batch, so 2 and 3 "
            f"would save no memory there; use parallel.zero_stage = 1"
        )
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
    if batch.micro_batch_size < 1:
        raise ConfigError(f"batch.micro_batch_size = {batch.micro_batch_size} must be at least 1")
    if batch.global_batch_tokens < seq_len or batch.global_batch_tokens % seq_len:
        raise ConfigError(
            f"batch.global_batch_tokens = {batch.global_batch_tokens} is not a multiple of data.seq_len = {seq_len}; "
            f"nearest: {_multiples(seq_len, batch.global_batch_tokens)}"
        )
    sequences = batch.global_batch_tokens // seq_len
    at_once = batch.micro_batch_size * data
    if sequences % at_once:
        raise ConfigError(
            f"batch.micro_batch_size {batch.micro_batch_size} x data-parallel size {data} = {at_once} sequences does "
            f"not divide the global batch of {sequences} sequences ({batch.global_batch_tokens} tokens); "
            f"{_near_micro_batches(sequences, data, batch.micro_batch_size, seq_len)}"
        )
    micro_batches = sequences // at_once
    if parallel.schedule == "1f1b" and micro_batches < parallel.pipeline:
        raise ConfigError(
            f"parallel.schedule = '1f1b' needs at least as many micro-batches a step as stages: {micro_batches} < "
            f"parallel.pipeline = {parallel.pipeline}; lower batch.micro_batch_size = {batch.micro_batch_size} or "
            f"raise batch.global_batch_tokens to {parallel.pipeline * at_once * seq_len}"
        )
    return micro_batches


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
    values = list(allowed)
    below = [value for value in values if value <= wanted]
    above = [value for value in values if value >= wanted]
    return " or ".join(str(value) for value in dict.fromkeys(below[-1:] + above[:1]))


def _multiples(unit: int, wanted: int) -> str:
    below, above = wanted // unit * unit, -(-wanted // unit) * unit
    return " or ".join(str(value) for value in dict.fromkeys((below, above)) if value)
