"""Arrange the processes of a run in three dimensions, by the rules that an arrangement must obey."""

import json
from dataclasses import dataclass

from gpt.errors import ConfigError, either, nearest, nearest_divisors, nearest_multiples
from gpt.model.config import ModelConfig
from parallel.layout.batch_rules import check_ranks, micro_batches_per_step
from parallel.layout.config import V_SHAPED, BatchConfig, ParallelConfig
from parallel.layout.fp8_rules import check_fp8
from parallel.layout.pipeline_rules import check_pipeline, stages_per_rank
from parallel.layout.split import balanced_split, check_split


@dataclass(frozen=True)
class Layout:
    """A valid arrangement. Ranks count tensor fastest, then data, then pipeline, so that a node holds whole tensor
    groups first."""

    tensor: int
    pipeline: int
    data: int
    data_shard: int
    micro_batches: int  # per rank and step, with the full batch
    split: tuple[int, ...]  # blocks of each pipeline stage, from the embedding to the head
    v_shaped: bool  # the second half of the stages lies on the ranks in reverse order

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"

    @property
    def stages(self) -> int:
        return len(self.split)

    def layers_of(self, stage: int) -> range:
        """Return the blocks of a pipeline stage."""
        begin = sum(self.split[:stage])
        return range(begin, begin + self.split[stage])

    def stages_of(self, pipeline_rank: int) -> tuple[int, ...]:
        """Return the stages that a pipeline rank holds, in the order of the model."""
        return tuple(stage for stage in range(self.stages) if self.rank_of(stage) == pipeline_rank)

    def rank_of(self, stage: int) -> int:
        """Return the pipeline rank that holds a stage. Stages lie in rounds (0 .. p-1, 0 .. p-1), or as a V (0 .. p-1
        and back)."""
        if self.v_shaped and stage >= self.pipeline:
            return self.stages - 1 - stage
        return stage % self.pipeline


def resolve_layout(
    parallel: ParallelConfig,
    batch: BatchConfig,
    *,
    model: ModelConfig,
    seq_len: int,
    world_size: int,
    restarts_positions: bool = False,
    option: str = "",
) -> Layout:
    """Return the layout of a configuration on `world_size` processes.

    `restarts_positions`: a row of seq_len tokens holds several sequences, each of at most model.n_ctx positions.
    `option`: the option that gave the number of processes, such as "--nproc"; "" if none did.
    ConfigError names the rule that the configuration breaks.
    """
    for key in ("tensor", "pipeline", "data", "data_shard", "stages_per_rank"):
        value = getattr(parallel, key)
        if value is not None and value < 1:
            raise ConfigError(f"parallel.{key} = {value} is invalid: must be at least 1")
    data = _data_size(parallel, world_size, option)
    shard = _shard_size(parallel, data)
    _check_model(parallel, model, seq_len, restarts_positions=restarts_positions)
    check_pipeline(parallel)
    check_fp8(parallel, model, micro_batch_tokens=batch.micro_batch_size * seq_len)
    stages = parallel.pipeline * stages_per_rank(parallel)
    if parallel.split is not None:
        split = check_split(parallel.split, model, stages=stages)
    else:
        split = balanced_split(model, stages=stages, seq_len=seq_len, recompute=parallel.recompute == "full")
    if option and parallel.data is None:
        check_ranks(batch, seq_len=seq_len, data=data, world_size=world_size, option=option)
    micro_batches = micro_batches_per_step(parallel, batch, seq_len=seq_len, data=data)
    v_shaped = parallel.pipeline > 1 and parallel.schedule in V_SHAPED
    return Layout(parallel.tensor, parallel.pipeline, data, shard, micro_batches, split, v_shaped)


def check_device(parallel: ParallelConfig, device_type: str) -> None:
    """Raise ConfigError if a setting needs CUDA and the device is another."""
    for key, default, reason in (
        ("offload", False, "on a CPU, weights and optimizer are in host memory already"),
        ("async_tensor", False, "it needs CUDA's symmetric memory"),
        ("attention", "auto", "it chooses between the kernels of a GPU"),
    ):
        value = getattr(parallel, key)
        if value != default and device_type != "cuda":
            raise ConfigError(
                f"parallel.{key} = {json.dumps(value)} with device '{device_type}' is invalid: {reason}. Use "
                f"{json.dumps(default)}"
            )


def _data_size(parallel: ParallelConfig, world_size: int, option: str) -> int:
    inner = parallel.tensor * parallel.pipeline
    if parallel.data is None:
        if world_size % inner:
            if option:
                raise ConfigError(
                    f"{option} {world_size} is invalid: must be a multiple of parallel.tensor {parallel.tensor} x "
                    f"parallel.pipeline {parallel.pipeline} = {inner}. Use {option} "
                    f"{nearest_multiples(inner, world_size)}"
                )
            raise ConfigError(
                f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} = {inner} does not divide "
                f"the {world_size} process{'' if world_size == 1 else 'es'}. Start "
                f"{nearest_multiples(inner, world_size)} processes (--nproc on one machine)"
            )
        return world_size // inner
    product = inner * parallel.data
    if product != world_size:
        if option:
            raise ConfigError(
                f"{option} {world_size} is invalid: parallel.tensor {parallel.tensor} x parallel.pipeline "
                f"{parallel.pipeline} x parallel.data {parallel.data} = {product}. Use {option} {product}, or remove "
                f"parallel.data to use all processes"
            )
        raise ConfigError(
            f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} x parallel.data "
            f"{parallel.data} = {product} is not the number of processes, {world_size}. Start {product} processes "
            f"(--nproc on one machine), or remove parallel.data to use all processes"
        )
    return parallel.data


def _shard_size(parallel: ParallelConfig, data: int) -> int:
    shard = parallel.data_shard
    if parallel.zero_stage == 0:
        if shard not in (None, 1):
            raise ConfigError(
                f"parallel.data_shard = {shard} with parallel.zero_stage = 0 is invalid: nothing is sharded. Use "
                f"parallel.zero_stage = 1, 2 or 3"
            )
        return 1
    if shard is None:
        return data
    _check_divides(data, shard, "the data-parallel size", "parallel.data_shard")
    return shard


def _check_model(parallel: ParallelConfig, model: ModelConfig, seq_len: int, *, restarts_positions: bool) -> None:
    if seq_len > model.n_ctx and not restarts_positions:
        raise ConfigError(f"data.seq_len = {seq_len} is invalid: must be at most model.n_ctx = {model.n_ctx}")
    if parallel.async_tensor and not (parallel.compile and parallel.tensor > 1):
        raise ConfigError(
            f"parallel.async_tensor = true with parallel.compile = {str(parallel.compile).lower()} and parallel.tensor "
            f"= {parallel.tensor} is invalid: the compiler splits the products and messages of tensor ranks. Use "
            f"parallel.compile = true with parallel.tensor of at least 2, or parallel.async_tensor = false"
        )
    if parallel.async_tensor and not parallel.sequence_parallel:
        raise ConfigError(
            "parallel.async_tensor = true with parallel.sequence_parallel = false is invalid: the compiler overlaps "
            "the gathers and reduce-scatters of sequence parallelism. Use parallel.async_tensor = false, or "
            f"parallel.sequence_parallel = true, for which parallel.tensor must divide data.seq_len = {seq_len} "
            f"and model.n_ctx = {model.n_ctx}"
        )
    shared = (("data.seq_len", seq_len), ("model.n_ctx", model.n_ctx)) if parallel.sequence_parallel else ()
    for name, number in (("model.n_heads", model.n_heads), ("model.d_ff", model.ff_width), *shared):
        _check_divides(number, parallel.tensor, name, "parallel.tensor")
    rows = model.padded_vocab_size
    if not _fills_all_ranks(rows, parallel.tensor):
        near = nearest(parallel.tensor, (tensor for tensor in range(1, rows + 1) if _fills_all_ranks(rows, tensor)))
        raise ConfigError(
            f"parallel.tensor = {parallel.tensor} is invalid: it leaves ranks without any of the vocabulary's {rows} "
            f"rows (model.vocab_size rounded up to a multiple of model.vocab_multiple). Use {either(near)}"
        )


def _fills_all_ranks(rows: int, ranks: int) -> bool:
    """Return whether each rank gets a row if shards have ceil(rows / ranks) rows."""
    return -(-rows // ranks) * (ranks - 1) < rows


def _check_divides(number: int, divisor: int, name: str, divisor_name: str) -> None:
    if number % divisor:
        raise ConfigError(
            f"{divisor_name} = {divisor} is invalid: must divide {name} = {number}. Use "
            f"{nearest_divisors(number, divisor)}"
        )
