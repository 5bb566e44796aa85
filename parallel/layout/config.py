"""The [parallel] and [batch] sections of a recipe."""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError
from gpt.model.attention_kernels import AttentionKernel
from gpt.training.schedule import BatchRamp, constant_batch

EngineName = Literal["native", "deepspeed", "megatron"]
Precision = Literal["bf16", "fp32", "fp8"]
Schedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev"]

V_SHAPED = ("zbv_zero_bubble", "dualpipev")  # each rank holds two stages: one on the way down, one on the way up
SEVERAL_STAGES = ("interleaved_1f1b", "interleaved_zero_bubble", *V_SHAPED)
ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv_zero_bubble")  # run the backward of inputs first, of weights later


@dataclass(frozen=True)
class ParallelConfig:
    """The [parallel] section of a recipe: sizes of the three axes, and how each axis works."""

    engine: EngineName = "native"
    """The library that trains on several ranks."""
    tensor: int = 1
    """Tensor parallel ranks."""
    pipeline: int = 1
    """Pipeline parallel ranks."""
    data: int | None = None
    """Data parallel ranks. All processes that tensor and pipeline leave by default."""
    data_shard: int | None = None
    """Data ranks that share one copy of the weights. All of them by default, 1 with zero_stage 0; any other number is
    hybrid sharding."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """0 replicates weights and optimizer over the data ranks. 1 shards both, gathers weights and reduces gradients once
    a step. 2 reduces gradients after each micro-batch. 3 also gathers weights before each use and frees them."""
    schedule: Schedule = "1f1b"
    """Order of the micro-batches in a pipeline. No effect with pipeline 1."""
    stages_per_rank: int | None = None
    """Pipeline stages of a rank. 1 by default for gpipe and 1f1b, else 2."""
    split: tuple[int, ...] | None = None
    """Blocks of each stage. Balanced by cost by default."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, all but the outputs of matrix products and attention, or
    all."""
    precision: Precision = "bf16"
    """The type of the computation. Weights and optimizer are kept in fp32. fp8 is for the matrix products of blocks, in
    training; all else, with the head, the embedding and evaluation, stays in bf16. It needs compute capability 8.9."""
    fp8_min_width: int = 2048
    """The smallest model.d_model that precision = "fp8" accepts: rounding to fp8 costs narrower models more time than
    their products gain."""
    attention: AttentionKernel = "auto"
    """The attention kernel on a GPU. `auto` takes cuDNN first on Hopper and data-centre Blackwell, FlashAttention on
    others. `efficient` is torch's memory-efficient kernel, `math` plain products. Documents take FlexAttention."""
    compile: bool = False
    """Compile each block with torch.compile, for the shape of a micro-batch. Later steps compile nothing."""
    offload: bool = False
    """Keep the shards of weights, gradients and optimizer in host memory and update them there."""
    sequence_parallel: bool = True
    """Share the sequence among tensor ranks between matrices. false keeps it whole on each: more memory, half the
    messages. No effect with tensor 1."""
    async_tensor: bool = False
    """Overlap the communication of tensor ranks with matrix products."""


def splits_backward(parallel: ParallelConfig) -> bool:
    """Return whether the layout runs the backward of a stage's inputs first and that of its weights later.

    DualPipeV splits some backward passes. Compiled or recomputed blocks cannot be split, so then it splits none.
    """
    if parallel.pipeline == 1:
        return False
    whole = parallel.compile or parallel.recompute != "none"
    return parallel.schedule in ZERO_BUBBLE or (parallel.schedule == "dualpipev" and not whole)


@dataclass(frozen=True)
class BatchConfig:
    """The [batch] section of a recipe: sizes of a step. With `ramp_tokens`, the batch grows to its full size."""

    micro_batch_size: int
    """Sequences of a rank in one forward pass."""
    global_batch_tokens: int
    """Tokens of a step over all ranks."""
    ramp_tokens: int | None = None
    """Tokens over which the batch grows to its full size. No ramp by default."""
    ramp_initial_tokens: int | None = None
    """Tokens of a step at the start of the ramp."""
    ramp_increment_tokens: int | None = None
    """Tokens by which the batch grows. `ramp_initial_tokens` by default."""

    @property
    def ramp(self) -> BatchRamp:
        """Tokens of each step. Raises ConfigError if the ramp's keys contradict each other."""
        if self.ramp_tokens is None:
            for key in ("ramp_initial_tokens", "ramp_increment_tokens"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"batch.{key} = {getattr(self, key)} without batch.ramp_tokens is invalid: the ramp needs a "
                        f"length. Set batch.ramp_tokens, or remove batch.{key}"
                    )
            return constant_batch(self.global_batch_tokens)
        initial = self.ramp_initial_tokens
        if initial is None:
            raise ConfigError(
                f"batch.ramp_tokens = {self.ramp_tokens} is invalid: it needs the size of the first steps. Set "
                f"batch.ramp_initial_tokens"
            )
        increment = initial if self.ramp_increment_tokens is None else self.ramp_increment_tokens
        return BatchRamp(self.global_batch_tokens, initial, increment, self.ramp_tokens)
