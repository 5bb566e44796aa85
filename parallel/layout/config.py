"""The [parallel] and [batch] sections of a recipe."""

from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError
from gpt.training.batch_ramp import BatchRamp, constant_batch

Schedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev"]


V_SHAPED = ("zbv_zero_bubble", "dualpipev")  # a rank holds one stage going down and one coming up


SEVERAL_STAGES = ("interleaved_1f1b", "interleaved_zero_bubble", *V_SHAPED)


ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv_zero_bubble")  # each backward: of inputs first, of weights later


@dataclass(frozen=True)
class ParallelConfig:
    """The three sizes and how each axis works. `data` None takes every process that tensor and pipeline leave.

    `zero_stage` 0 replicates weights and optimizer over data ranks. 1 shards both: weights are gathered and gradients
    reduced once a step. 2 reduces gradients into their shards after each micro-batch; 3 also gathers weights for each
    use and frees them after. `data_shard` is the number of data ranks that share one copy (None: all of them, or 1 for
    zero_stage 0): between the two lies hybrid sharding. `offload` keeps the shards of weights, gradients and optimizer
    in the host's memory and updates them there. `async_tensor` overlaps tensor ranks' messages with products.

    `schedule` orders the micro-batches of a pipeline, `stages_per_rank` is the number of stages on each of its ranks
    (None: 1 for gpipe and 1f1b, else 2); with pipeline 1 there is nothing to order, and both are not used. `split` is
    the number of blocks of each stage (None: balanced by cost).
    """

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
    """`micro_batch_size` sequences per rank and forward pass; `global_batch_tokens` over all ranks per step.

    With `ramp_tokens`, steps grow to that size over the first so many tokens, from `ramp_initial_tokens` by
    `ramp_increment_tokens` (None: by the initial size).
    """

    micro_batch_size: int
    global_batch_tokens: int
    ramp_tokens: int | None = None
    ramp_initial_tokens: int | None = None
    ramp_increment_tokens: int | None = None

    @property
    def ramp(self) -> BatchRamp:
        """Tokens of each step; ConfigError when the keys do not go together."""
        if self.ramp_tokens is None:
            for key in ("ramp_initial_tokens", "ramp_increment_tokens"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"batch.{key} = {getattr(self, key)} without batch.ramp_tokens: say over how many tokens steps "
                        f"grow, or remove it"
                    )
            return constant_batch(self.global_batch_tokens)
        initial = self.ramp_initial_tokens
        if initial is None:
            raise ConfigError(
                f"batch.ramp_tokens = {self.ramp_tokens} needs batch.ramp_initial_tokens, the size of the first steps"
            )
        increment = initial if self.ramp_increment_tokens is None else self.ramp_increment_tokens
        return BatchRamp(self.global_batch_tokens, initial, increment, self.ramp_tokens)
