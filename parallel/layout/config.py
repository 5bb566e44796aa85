"""The [parallel] and [batch] sections of a recipe."""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError
from gpt.training.schedule import BatchRamp, constant_batch

Schedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev"]

V_SHAPED = ("zbv_zero_bubble", "dualpipev")  # each rank holds two stages: one on the way down, one on the way up
SEVERAL_STAGES = ("interleaved_1f1b", "interleaved_zero_bubble", *V_SHAPED)
ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv_zero_bubble")  # run the backward of inputs first, of weights later


@dataclass(frozen=True)
class ParallelConfig:
    """Sizes of the three axes, and how each axis works.

    `data` None takes all processes that tensor and pipeline leave.

    `zero_stage` 0 replicates weights and optimizer over the data ranks. 1 shards both: weights are gathered and
    gradients reduced once a step. 2 also reduces gradients into their shards after each micro-batch. 3 also gathers
    weights before each use and frees them afterwards. `data_shard` is the number of data ranks that share one copy
    of the weights; None means all of them, or 1 with zero_stage 0. Any other value is hybrid sharding. `offload` keeps
    the shards of weights, gradients and optimizer in host memory and updates them there. `async_tensor` overlaps the
    communication of tensor ranks with matrix products.

    `schedule` orders the micro-batches of a pipeline. `stages_per_rank` is the number of stages on each of its ranks
    (None: 1 for gpipe and 1f1b, else 2). Neither has an effect with pipeline 1. `split` is the number of blocks of each
    stage (None: balanced by cost).
    """

    engine: Literal["native"] = "native"
    tensor: int = 1
    pipeline: int = 1
    data: int | None = None
    data_shard: int | None = None
    zero_stage: Literal[0, 1, 2, 3] = 1
    schedule: Schedule = "1f1b"
    stages_per_rank: int | None = None
    split: tuple[int, ...] | None = None
    recompute: Literal["none", "selective", "full"] = "none"
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    offload: bool = False
    async_tensor: bool = False


@dataclass(frozen=True)
class BatchConfig:
    """Batch sizes: `micro_batch_size` in sequences per rank and forward pass, `global_batch_tokens` per step over all
    ranks.

    With `ramp_tokens`, the batch grows to its full size over the first `ramp_tokens` tokens. It starts at
    `ramp_initial_tokens` and grows by `ramp_increment_tokens` (None: by the initial size).
    """

    micro_batch_size: int
    global_batch_tokens: int
    ramp_tokens: int | None = None
    ramp_initial_tokens: int | None = None
    ramp_increment_tokens: int | None = None

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
