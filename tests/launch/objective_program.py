"""A program for tests: `triaxial train` with an objective of its own, defined here and nowhere else.

    python objective_program.py RECIPE [--section.key VALUE ...]

It classifies documents: the scalar head's outputs at the positions that a mask stream marks are trained, by binary
cross-entropy, on the document's label from a label stream. Attention stays within the parts of a document that a
separator token divides.
"""

import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn import functional

from gpt.losses.base import LossTotals
from gpt.losses.batch import Batch
from gpt.losses.marks import PADDING
from gpt.model.heads import ScalarHead
from gpt.model.masks import AttentionMask
from gpt.training.objective import positions_of
from launch.config.run_config import read_run_config
from launch.processes.environment import ClusterEnvironment

SEPARATOR = 1


@dataclass(frozen=True)
class ClassifyConfig:
    kind: Literal["classify"] = "classify"

    def build(self, *, z_loss):
        return Classify()


class ClassifyLoss:
    metric_names = evaluation_names = ("accuracy",)

    def __call__(self, outputs, batch):
        scores = outputs[..., 0].float()  # (b, t)
        labels = batch.extra["label"].unsqueeze(1).expand_as(scores)  # (b, t)
        mask = batch.loss_mask
        losses = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        total = (losses * mask).sum()
        right = (((scores > 0) == (labels > 0.5)) * mask).sum()
        return LossTotals(total, mask.sum(), total.detach(), {"accuracy": right})


class TokensOnly(torch.nn.Module):
    """A front of its own: token embeddings scaled by a learned vector, without positions."""

    def __init__(self, config):
        super().__init__()
        self.ids = torch.nn.Embedding(config.padded_vocab_size, config.d_model)
        self.scale_norm = torch.nn.Parameter(torch.empty(config.d_model))

    def forward(self, tokens, positions):
        return self.ids(tokens) * self.scale_norm


class Classify:
    streams = ("label", "mask")
    optional_streams = ()

    def batch(self, samples):
        tokens = torch.from_numpy(samples.tokens)[:, :-1].contiguous()
        inside = torch.from_numpy(samples.segment_ids)[:, :-1] != PADDING
        parts = (tokens == SEPARATOR).cumsum(1).masked_fill(~inside, PADDING)
        return Batch(
            tokens,
            targets=torch.zeros(len(tokens), 1, dtype=torch.int64),
            loss_mask=torch.from_numpy(samples.streams["mask"])[:, :-1].bool() & inside,
            positions=positions_of(parts),
            segment_ids=parts,
            extra={"label": torch.from_numpy(samples.streams["label"][:, 0]).double() * 0.9 + 0.05},
        )

    def check_corpus(self, files, model):
        return []

    def front(self, config):
        return TokensOnly(config)

    def head(self, config):
        return ScalarHead(config)

    def loss(self, *, compile):
        return ClassifyLoss()

    def attention_mask(self, batch):
        return AttentionMask("full", segment_ids=batch.segment_ids)

    def after_step(self, parameters):
        for name, parameter in parameters:  # a constraint, such as CLIP's on its temperature
            if name == "head.value.bias":
                parameter.clamp_(-0.004, 0.004)


def train(words):
    from launch.training.train_rank import run_rank

    config = replace(read_run_config(words[0], words[1:]), objective=ClassifyConfig())
    return run_rank(config, ClusterEnvironment.from_environment(), resume=None)


if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
