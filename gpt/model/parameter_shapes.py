"""The names and shapes of a model's parameters from its configuration alone, and a check of a file against them.

A model of a million layers costs gigabytes, even without its weights. Compare a stranger's file with the number of
layers before anything grows with that number.
"""

from dataclasses import replace

import torch

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT

_FIRST = "blocks.0."


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter of `GPT(config)`, vocabulary padding included, in the model's order. Builds one block."""
    with torch.device("meta"):
        model = GPT(replace(config, n_layers=1))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    block = {name.removeprefix(_FIRST): shape for name, shape in shapes.items() if name.startswith(_FIRST)}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if not name.startswith(_FIRST):
            found[name] = shape
        elif f"{_FIRST}{next(iter(block))}" == name:
            found |= {f"blocks.{i}.{part}": size for i in range(config.n_layers) for part, size in block.items()}
    return found


def check_layer_count(config: ModelConfig, n_tensors: int, *, where: str) -> None:
    """ConfigError: `n_tensors` are fewer than the layers, each of which has several."""
    if config.n_layers > n_tensors:
        raise ConfigError(
            f"{where}: n_layers = {config.n_layers:,} is invalid: the files hold only {n_tensors:,} tensors, and each "
            "layer has several. It is the configuration of another model."
        )
