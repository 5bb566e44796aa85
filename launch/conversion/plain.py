"""Export a checkpoint as plain safetensors files that any program can read and change, and import them into a run.

OUT/model.safetensors   every tensor whole, under our names: model.<parameter>, optimizer.exp_avg.<parameter>, ...;
                        several files and model.safetensors.index.json if they exceed 5 GB
OUT/config.json         the name of this format and the model's configuration
OUT/state.json          the rest of the checkpoint: step, data position, the whole recipe
OUT/digests.json        SHA-256 of the elements of each tensor, so that an import can report changed tensors
OUT/tokenizer/          the tokenizer's files
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt.adapters.config import BASE, adapter_of, adapter_shapes, is_adapter
from gpt.convert.round_trip import round_trip
from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.files.json_files import read_json_object
from gpt.files.regular import copy_folder
from gpt.files.safetensors import (
    INDEX,
    MAX_FILE_BYTES,
    TensorLocation,
    TensorSpec,
    encode_file,
    group_into_files,
    named_files,
    read_tensor,
)
from gpt.files.safetensors_folder import read_folder, read_model
from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import check_layer_count, parameter_shapes
from launch.config.recipe import build
from launch.conversion.sources import checkpoint_source, copy_folders, copy_tokenizer, widest_first
from launch.processes.terminal import tensor_progress
from launch.runs.imported_run import HUGGING_FACE, MODEL
from launch.runs.saved_run import SavedRun
from parallel.checkpoint.files import write_file
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.manifest import STATE_RULES
from parallel.checkpoint.stream import write_stream

FORMAT = "triaxial plain safetensors"
CONFIG, STATE, DIGESTS = "config.json", "state.json", "digests.json"


@dataclass(frozen=True)
class PlainSource:
    """Tensors in plain safetensors files, in the order of `specs`; they stay on disk until they are read."""

    locations: dict[str, TensorLocation]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each tensor, widest elements first."""
        specs = {name: TensorSpec(found.shape, found.dtype) for name, found in self.locations.items()}
        return {name: specs[name] for name in widest_first(specs)}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Read the (name, tensor) pairs, one at a time."""
        return ((name, read_tensor(self.locations[name])) for name in self.specs)


def export_plain(
    saved: SavedRun, output: Path, *, weights_only: bool = False, max_file_bytes: int = MAX_FILE_BYTES
) -> list[str]:
    """Write `output` and read it back; return lines for the user. Memory: about the largest tensor."""
    source = checkpoint_source(saved, weights_only=weights_only)
    files = named_files(group_into_files(source.specs, max_file_bytes))
    with partial_folder(output) as partial, tensor_progress("writing tensors", total=len(source.specs)) as advance:
        digests = round_trip(
            source,
            lambda tensors: _write_files(partial, source.specs, files, tensors),
            lambda: read_model(partial),
            progress=advance,
        )
        _write_json(
            partial / CONFIG, {"format": FORMAT, "format_version": 1, "model": dataclasses.asdict(saved.model_config)}
        )
        _write_json(partial / STATE, saved.checkpoint.state)
        _write_json(partial / DIGESTS, digests)
        copy_tokenizer(saved, partial)
        if (saved.run_directory / HUGGING_FACE).is_dir():
            copy_folder(saved.run_directory / HUGGING_FACE, partial / HUGGING_FACE)
    size_bytes = sum(spec.size_bytes for spec in source.specs.values())
    return [
        f"{output}: step {saved.step:,}, {len(digests)} tensors, {size_bytes:,} bytes in {len(files)} safetensors "
        "files",
        f"verified: {len(digests)} tensors bit for bit",
    ]


def is_plain(folder: Path) -> bool:
    """Return whether `export_plain` wrote this folder."""
    try:
        return bool(read_json_object(folder / CONFIG).get("format") == FORMAT)
    except (ConfigError, OSError):
        return False


def read_model_config(folder: Path) -> ModelConfig:
    """Return the model configuration of such a folder. ConfigError: its config.json has none."""
    described = read_json_object(folder / CONFIG).get("model")
    if not isinstance(described, dict):
        raise ConfigError(f"{folder / CONFIG} has no key 'model'")
    return build(ModelConfig, _without_none(described), where="model")


def import_plain(folder: Path, output: Path) -> list[str]:
    """Make a run directory of such a folder, whose tensors may have been changed; return lines for the user.

    ConfigError: weights are missing, unknown or have another shape than in the configuration, or the folder contains
    symbolic links. After an error nothing is at `output`.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, which is not followed. Put the file itself there.")
    state, config, source = (
        read_json_object(folder / STATE),
        read_model_config(folder),
        PlainSource(read_folder(folder)),
    )
    before = read_json_object(folder / DIGESTS) if (folder / DIGESTS).is_file() else None
    _check_state(folder, state, config)
    _check_tensors(folder, source.locations, config, state)
    specs = source.specs
    with partial_folder(output) as partial, tensor_progress("writing tensors", total=len(specs)) as advance:
        path = partial / "checkpoints" / step_name(state["step"])
        digests = round_trip(
            source,
            lambda tensors: write_stream(path, tensors, expected=specs, state=state),
            lambda: read_tensors(verify_checkpoint(path)),
            progress=advance,
        )
        copy_folders(folder, partial)
    changed = [name for name in specs if before is not None and before.get(name) != digests[name]]
    lines = [f"{output}: step {state['step']:,}, {len(specs)} tensors, {config.parameters:,} parameters"]
    if changed:
        lines.append(f"{len(changed)} tensors have changed since the export, '{changed[0]}' is the first")
    if all(name.startswith(MODEL) for name in specs):
        lines.append("weights only: training cannot resume from them; a new run can start from them (run.start_from)")
    return [*lines, f"verified: {len(specs)} tensors bit for bit"]


def _write_files(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    files: Mapping[str, list[str]],
    tensors: Iterator[tuple[str, Tensor]],
) -> None:
    """Write the tensors, which come in the order of `specs`, to the files that hold them, and an index of several."""
    for file, names in files.items():
        write_file(folder / file, encode_file({name: specs[name] for name in names}, tensors))
    assert next(tensors, None) is None, "more tensors than expected"
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        total = sum(spec.size_bytes for spec in specs.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _check_state(folder: Path, state: dict[str, Any], config: ModelConfig) -> None:
    """Check that the state is one of a checkpoint, and of the same model."""
    if fault := STATE_RULES.fault(state, ""):
        raise ConfigError(f"{folder / STATE} is invalid: {fault}")
    described = state.get("config", {}).get("model")
    if described is None or "step" not in state:
        raise ConfigError(f"{folder / STATE} has no step and configuration: it is not a checkpoint's state")
    if build(ModelConfig, _without_none(described), where="model") != config:
        raise ConfigError(f"{folder}: {CONFIG} and {STATE} describe different models. Make them equal.")


def _check_tensors(
    folder: Path, found: Mapping[str, TensorLocation], config: ModelConfig, state: Mapping[str, Any]
) -> None:
    """Check that the weights are those of the configuration, and that all other tensors are the optimizer's."""
    check_layer_count(config, len(found), where=str(folder / CONFIG))
    expected = parameter_shapes(config) | adapter_shapes(config, adapter_of(state))
    if BASE in state:  # other weights are in another run
        expected = {name: shape for name, shape in expected.items() if MODEL + name in found or is_adapter(name)}
    shapes = {MODEL + name: shape for name, shape in expected.items()}
    for name in sorted(shapes.keys() | {name for name in found if name.startswith(MODEL)}):
        here, wanted = found[name].shape if name in found else None, shapes.get(name)
        if here != wanted:
            found_shape, shape = (list(shape) if shape is not None else "absent" for shape in (here, wanted))
            raise ConfigError(f"{folder}: the tensor '{name}' is {found_shape}, but {shape} in the model of {CONFIG}")
    for name in found:
        if not name.startswith((MODEL, "optimizer.")):
            raise ConfigError(
                f"{folder}: the tensor '{name}' is neither a weight nor part of the optimizer. Remove it."
            )


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, [json.dumps(values, indent=1).encode() + b"\n"])
