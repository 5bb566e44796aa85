"""Write a run directory with imported weights, as training would leave it at step 0.

OUT/checkpoints/step-000000000/   the weights in fp32, and in state.json the model's configuration and its origin
OUT/tokenizer/                    the tokenizer's files
OUT/model.toml                    the [model] section for a recipe that starts from here (run.start_from)
"""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt.adapters.config import AdapterConfig, adapter_shapes
from gpt.convert.hugging_face.names import table
from gpt.convert.weights import shapes
from gpt.files.safetensors import TensorSpec
from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import parameter_shapes
from gpt.tokenizer.tokenizers import tokenizer_files
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.stream import write_stream

IMPORTED = "imported"  # key in a checkpoint's state: the origin of the weights
HUGGING_FACE = "hugging_face"  # the folder of the model's other files
MODEL = "model."  # prefix of the names of weights in a checkpoint


def write_run(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    config: ModelConfig,
    tokenizer_file: Path,
    about: dict[str, object],
    order: Iterable[str] | None = None,
    adapter: AdapterConfig | None = None,
) -> Path:
    """Fill an empty run directory; return the path of the checkpoint.

    `tensors`: in the order of the table, or of the names in `order`, without vocabulary padding, which becomes zeros;
    then those of `adapter`.
    """
    (folder / "tokenizer").mkdir()
    files = tokenizer_files(tokenizer_file)
    for file in files:
        shutil.copyfile(file, folder / "tokenizer" / file.name)
    data = {"tokenizer": files[-1].name, "seq_len": config.n_ctx, "train": [], "validation": []}
    model = dataclasses.asdict(config)
    (folder / "model.toml").write_text(model_toml(config), encoding="utf-8")
    path = folder / "checkpoints" / step_name(0)
    sections: dict[str, object] = {"model": model, "data": data}
    if adapter is not None:
        sections["adapter"] = dataclasses.asdict(adapter)
    state: dict[str, object] = {"config": sections, "step": 0, "tokens_seen": 0, IMPORTED: about}
    adapters = {MODEL + name: TensorSpec(s, torch.float32) for name, s in adapter_shapes(config, adapter).items()}
    write_stream(path, _named(tensors), expected=expected_weights(config, order) | adapters, state=state)
    return path


def expected_weights(config: ModelConfig, order: Iterable[str] | None = None) -> dict[str, TensorSpec]:
    """Shapes of a checkpoint's weights, with padding, in the order of the table, or of the names in `order`."""
    padded = parameter_shapes(config)
    order = [name for entry in table(config) for name in entry.names] if order is None else list(order)
    assert set(order) == set(shapes(config)) == set(padded)
    return {MODEL + name: TensorSpec(padded[name], torch.float32) for name in order}


def read_weights(checkpoint: Checkpoint, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Read weights of a checkpoint, with padding, one at a time."""
    for name, tensor in read_tensors(checkpoint, [MODEL + name for name in names]):
        yield name.removeprefix(MODEL), tensor
        del tensor


def model_toml(config: ModelConfig) -> str:
    """The configuration as a recipe's [model] section."""
    lines = ["[model]"]
    tables = []
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            tables += ["", f"[model.{key}]", *(f"{inner} = {_toml(item)}" for inner, item in value.items())]
        elif value is not None:
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _named(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield MODEL + name, tensor
        del tensor
