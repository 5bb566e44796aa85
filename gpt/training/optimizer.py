"""AdamW with decay on matrices only; never reads gradients from anywhere but the parameters."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from gpt.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """GPT-3's Adam (arXiv 2005.14165, appendix B). `learning_rate` is the peak that the schedule scales."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        for key in ("learning_rate", "eps", "max_gradient_norm"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"optimizer.{key} = {getattr(self, key)} must be a number above 0")
        for key in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"optimizer.{key} = {getattr(self, key)} must lie in [0, 1)")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"optimizer.weight_decay = {self.weight_decay} must not be negative")


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over named parameters: weight decay on matrices, none on biases and normalisation weights."""
    named = list(parameters)
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
