"""A checkpoint as plain safetensors files that any program reads and writes, and back into a run directory.

OUT/model.safetensors   every tensor whole, under our names: model.<parameter>, optimizer.exp_avg.<parameter>, ...;
                        several files and model.safetensors.index.json where they exceed 5 GB
OUT/config.json         the format's name, and the model's configuration
OUT/state.json          the rest of the checkpoint: step, data position, the whole recipe
OUT/digests.json        SHA-256 of each tensor's bytes, so that what was changed since is told
OUT/tokenizer/          the tokenizer's files
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.files.safetensors import (
    INDEX,
    MAX_FILE_BYTES,
    TensorLocation,
    TensorSpec,
    digest,
    encode_file,
    group_into_files,
    named_files,
    read_folder,
    read_tensor,
)
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import tokenizer_files
from launch.config.recipe import build
from launch.processes.terminal import progress_bar
from launch.runs.imported_run import HUGGING_FACE, MODEL
from launch.runs.saved_run import SavedRun
from parallel.checkpoint import find as checkpoint
from parallel.checkpoint.manifest import step_name, write_file
from parallel.checkpoint.stream import write_stream

FORMAT = "triaxial plain safetensors"
CONFIG, STATE, DIGESTS = "config.json", "state.json", "digests.json"


def export_plain(
    saved: SavedRun, output: Path, *, weights_only: bool = False, max_file_bytes: int = MAX_FILE_BYTES
) -> list[str]:
    """Write `output` and read it back; returns what to tell the user. Memory: about the largest tensor."""
    found = checkpoint.tensor_metadata(saved.checkpoint_path)
    # Widest elements first: all then lie aligned in their file.
    names = sorted(found, key=lambda name: (-found[name][1].itemsize, name))
    names = [name for name in names if name.startswith(MODEL) or not weights_only]
    specs = {name: TensorSpec(tuple(found[name][0]), found[name][1]) for name in names}
    digests: dict[str, str] = {}
    with partial_folder(output) as partial, progress_bar("writing tensors", total=len(names)) as advance:
        stream = checkpoint.read_tensors(saved.checkpoint_path, names, verified=saved.verified)
        files = _write_files(partial, specs, _noted(stream, digests, advance), max_file_bytes)
        _write_json(
            partial / CONFIG, {"format": FORMAT, "format_version": 1, "model": dataclasses.asdict(saved.model_config)}
        )
        _write_json(partial / STATE, checkpoint.read_state(saved.checkpoint_path))
        _write_json(partial / DIGESTS, digests)
        (partial / "tokenizer").mkdir()
        for file in tokenizer_files(saved.tokenizer_file):
            shutil.copyfile(file, partial / "tokenizer" / file.name)
        if (saved.run_directory / HUGGING_FACE).is_dir():
            shutil.copytree(saved.run_directory / HUGGING_FACE, partial / HUGGING_FACE)
        for name, stored in read_folder(partial).items():
            if digest(read_tensor(stored), stored.dtype) != digests[name]:
                raise RuntimeError(f"{partial}: '{name}' does not come back as {saved.checkpoint_path} has it")
    size_bytes = sum(spec.size_bytes for spec in specs.values())
    return [
        f"{output}: step {saved.step:,}, {len(names)} tensors, {size_bytes:,} bytes in {files} safetensors files",
        f"verified: {len(names)} tensors bit for bit",
    ]


def is_plain(folder: Path) -> bool:
    """Whether a folder is what `export_plain` writes."""
    try:
        return bool(_read_json(folder / CONFIG).get("format") == FORMAT)
    except (ConfigError, OSError):
        return False


def read_model_config(folder: Path) -> ModelConfig:
    """The model in such a folder. ConfigError: its config.json describes none."""
    described = _read_json(folder / CONFIG).get("model")
    if not isinstance(described, dict):
        raise ConfigError(f"{folder / CONFIG} has no 'model'")
    return build(ModelConfig, _set(described), where="model")


def import_plain(folder: Path, output: Path) -> list[str]:
    """Make a run directory of such a folder, whose tensors others may have changed; returns what to tell the user.

    ConfigError: weights missing, unknown or of another shape than the configuration's, links. Nothing is left at
    `output` then.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, which is not followed; put the file itself there")
    state, config, tensors = _read_json(folder / STATE), read_model_config(folder), read_folder(folder)
    before = _read_json(folder / DIGESTS) if (folder / DIGESTS).is_file() else None
    _check_state(folder, state, config)
    _check_tensors(folder, tensors, config)
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    expected = {name: TensorSpec(tensors[name].shape, tensors[name].dtype) for name in names}
    digests: dict[str, str] = {}
    with partial_folder(output) as partial, progress_bar("writing tensors", total=len(names)) as advance:
        path = partial / "checkpoints" / step_name(int(state["step"]))
        stream = ((name, read_tensor(tensors[name])) for name in names)
        write_stream(path, _noted(stream, digests, advance), expected=expected, state=state)
        for name in ("tokenizer", HUGGING_FACE):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, partial / name)
        for name, tensor in checkpoint.read_tensors(path):
            if digest(tensor, tensor.dtype) != digests[name]:
                raise RuntimeError(f"{path}: '{name}' does not come back as {folder} has it")
    changed = [name for name in names if before is not None and before.get(name) != digests[name]]
    lines = [f"{output}: step {state['step']:,}, {len(names)} tensors, {config.parameters:,} parameters"]
    if changed:
        lines.append(f"{len(changed)} tensors are not as they were exported, '{changed[0]}' the first")
    if all(name.startswith(MODEL) for name in names):
        lines.append("weights only: training cannot go on from them; a new run can begin with them (run.start_from)")
    return [*lines, f"verified: {len(names)} tensors bit for bit"]


def _write_files(
    folder: Path, specs: Mapping[str, TensorSpec], stream: Iterator[tuple[str, Tensor]], max_file_bytes: int
) -> int:
    """The tensors of the stream, which come in the order of `specs`; how many files that made."""
    files = named_files(group_into_files(specs, max_file_bytes))
    for file, names in files.items():
        write_file(folder / file, encode_file({name: specs[name] for name in names}, stream))
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        total = sum(spec.size_bytes for spec in specs.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return len(files)


def _noted(stream: Iterator[tuple[str, Tensor]], digests: dict[str, str], advance: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they pass, the digest of each left in `digests`."""
    for name, tensor in stream:
        digests[name] = digest(tensor, tensor.dtype)
        yield name, tensor
        del tensor
        advance(name)


def _check_state(folder: Path, state: dict[str, Any], config: ModelConfig) -> None:
    """That it is a checkpoint's, and of the same model."""
    try:
        described, step = state["config"]["model"], state["step"]
        if not isinstance(described, dict) or type(step) is not int or step < 0:
            raise TypeError
    except (KeyError, TypeError):
        raise ConfigError(f"{folder / STATE} holds no step and configuration: it is no checkpoint's state") from None
    if build(ModelConfig, _set(described), where="model") != config:
        raise ConfigError(f"{folder}: {CONFIG} and {STATE} describe different models; make both say the same")


def _check_tensors(folder: Path, found: Mapping[str, TensorLocation], config: ModelConfig) -> None:
    """Weights as the configuration has them; moments, if there are any, of these weights."""
    with torch.device("meta"):
        shapes = {MODEL + name: tuple(parameter.shape) for name, parameter in GPT(config).named_parameters()}
    for name in sorted(shapes.keys() | {name for name in found if name.startswith(MODEL)}):
        here, wanted = found[name].shape if name in found else None, shapes.get(name)
        if here != wanted:
            told = [list(shape) if shape is not None else "absent" for shape in (here, wanted)]
            raise ConfigError(f"{folder}: the tensor '{name}' is {told[0]}, but {told[1]} in the model of {CONFIG}")
    for name in found:
        if not name.startswith((MODEL, "optimizer.")):
            raise ConfigError(f"{folder}: the tensor '{name}' is neither a weight nor the optimizer's; remove it")


def _set(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: no JSON object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, [json.dumps(values, indent=1).encode() + b"\n"])
