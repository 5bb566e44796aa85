"""A training step to predict: the model, its layout and its batch, for this program or another."""

from dataclasses import dataclass
from typing import Literal

from gpt.model.config import ModelConfig

# `attention` recomputes attention alone (arXiv 2205.05198), `operators` every second product as torchtitan does,
# `elementwise` all but products and attention, as `parallel.recompute = "selective"` does.
Recompute = Literal["none", "attention", "elementwise", "operators", "full"]


@dataclass(frozen=True)
class Job:
    """One step. `split` gives the blocks of each pipeline stage; `data` counts ranks after tensor, context, pipeline.

    `shard`: data ranks that share one copy of what ZeRO shards. `zero`: as `parallel.zero_stage`.
    """

    model: ModelConfig
    seq_len: int
    micro_batch_size: int
    micro_batches: int
    split: tuple[int, ...]
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    shard: int = 1
    zero: int = 1
    schedule: str = "1f1b"
    v_shaped: bool = False
    recompute: Recompute = "none"
    sequence_parallel: bool = True
    precision: str = "bf16"
    whole_backward: bool = False  # the schedule's backward of inputs also gives the gradients of weights
    overlap_tensor: bool = False  # messages of tensor ranks run beside products, also where the stack overlaps none

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.seq_len * self.micro_batch_size * self.micro_batches * self.data

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch that the ranks of one tensor group process together."""
        return self.seq_len * self.micro_batch_size // self.context

    @property
    def sequence_shares(self) -> int:
        """Tensor ranks among which a sequence is shared between matrices."""
        return self.tensor if self.sequence_parallel else 1

    @property
    def flops(self) -> float:
        """Model FLOPs of a step: 6 per weight in a product, attention as if it were not causal."""
        return self.model.train_flops_per_token(self.seq_len) * self.tokens

    def rank_of(self, stage: int) -> int:
        """Return the pipeline rank that holds a stage."""
        if self.v_shaped and stage >= self.pipeline:
            return len(self.split) - 1 - stage
        return stage % self.pipeline


def rank_parameters(job: Job) -> float:
    """Parameters of the largest pipeline rank before they are sharded over data ranks."""
    model = job.model
    held = [0.0] * job.pipeline
    for stage, blocks in enumerate(job.split):
        held[job.rank_of(stage)] += blocks * model.block_parameters
    table = model.padded_vocab_size * model.d_model
    held[0] += table
    if not (model.tied and len(job.split) == 1):  # two stages have a copy each, even on one rank
        held[job.rank_of(len(job.split) - 1)] += table
    return max(held) / job.tensor
