"""Report what a conversion would read, write and keep in memory, from sizes alone. No weight is read."""

import argparse
import hashlib
import math
import shutil
import time
from pathlib import Path

import torch

from gpt.convert.hugging_face.config import CONFIG, config_json, model_config, read_settings
from gpt.convert.hugging_face.logits import part_to_compare
from gpt.convert.hugging_face.names import family_of, table
from gpt.convert.hugging_face.source import TITLES
from gpt.convert.megatron.names import check_expressible
from gpt.convert.megatron.names import table as megatron_table
from gpt.convert.megatron.source import is_megatron
from gpt.convert.round_trip import main_dtype
from gpt.convert.weights import joined_shape, shapes
from gpt.errors import ConfigError
from gpt.files.safetensors import MAX_FILE_BYTES, TensorSpec, group_into_files
from gpt.model.config import ModelConfig
from launch.config.run_config import read_run_config
from launch.conversion.megatron import NOT_COMPARED, open_checkpoint
from launch.conversion.plain import is_plain, read_model_config
from launch.conversion.sources import EXPORT_DTYPES, dtype_name
from launch.runs.imported_run import expected_weights
from launch.runs.saved_run import open_run

PROCESS_BYTES = 700 << 20  # Python with torch and transformers loaded, and buffers
_HASHED_BYTES = 1 << 26


def describe_size(args: argparse.Namespace) -> list[str]:
    """Return lines for the user. ConfigError: the source is not valid, or the format cannot express the model."""
    config, source_dtype = _model(args)
    dtype = EXPORT_DTYPES[args.dtype or "float32"] if args.to in ("hf", "megatron") else torch.float32
    megatron = args.to == "megatron" or is_megatron(args.run)
    title, foreign = _foreign_shapes(config, megatron)
    written = foreign if args.to in ("hf", "megatron") else _checkpoint_shapes(config, megatron)
    specs = {name: TensorSpec(shape, dtype) for name, shape in written.items()}
    write_bytes = sum(spec.size_bytes for spec in specs.values())
    read_bytes = sum(math.prod(shape) for shape in foreign.values()) * source_dtype.itemsize
    largest = max(foreign, key=lambda name: math.prod(foreign[name]))
    largest_bytes = math.prod(foreign[largest]) * 4
    part = None if megatron else part_to_compare(config, args.logits)
    peak = PROCESS_BYTES + max(largest_bytes * 3 // 2, 0 if part is None else 4 * part.parameters)
    hash_bytes_per_s = _hash_bytes_per_s()
    hashed_bytes = 2 * read_bytes + 2 * write_bytes
    return [
        f"{args.run}: {title} architecture, {config.parameters:,} parameters, {len(foreign)} tensors",
        f"reads {read_bytes:,} bytes in {dtype_name(source_dtype)}; writes {write_bytes:,} bytes in "
        f"{dtype_name(dtype)}, {len(group_into_files(specs, MAX_FILE_BYTES))} files, then reads them back",
        f"memory: about {peak:,} bytes at most; the largest tensor, '{largest}', has {largest_bytes:,} in fp32",
        f"digests: {hashed_bytes:,} bytes, {hashed_bytes / hash_bytes_per_s / 60:.1f} minutes at "
        f"{hash_bytes_per_s / 1e6:,.0f} MB/s on one core here, plus the time of the disk",
        NOT_COMPARED if megatron else _compared_logits(config, part),
        *_free_space(args.output, write_bytes),
    ]


def _foreign_shapes(config: ModelConfig, megatron: bool) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Return the name of the other library's architecture and its shapes; for Megatron, those of each layer."""
    weight_shapes = shapes(config)
    if megatron:
        check_expressible(config)
        entries = megatron_table(config)
        return "Megatron's GPTModel", {entry.title: joined_shape(entry.names, weight_shapes) for entry in entries}
    config_json(config, dtype=torch.float32)
    return TITLES[family_of(config)], {entry.hf_name: entry.shape(weight_shapes) for entry in table(config)}


def _checkpoint_shapes(config: ModelConfig, megatron: bool) -> dict[str, tuple[int, ...]]:
    order = [name for entry in megatron_table(config) for name in entry.names] if megatron else None
    return {name: spec.shape for name, spec in expected_weights(config, order).items()}


def _model(args: argparse.Namespace) -> tuple[ModelConfig, torch.dtype]:
    """Return the model and the dtype of its stored weights."""
    source: Path = args.run
    if is_megatron(source):
        found = open_checkpoint(source, step=args.step, recipe=args.model)
        return found.config, main_dtype(found)
    if is_plain(source):
        return read_model_config(source), torch.float32
    if (source / CONFIG).exists() and not (source / "checkpoints").is_dir():
        name = str(_settings_dtype(source)).removeprefix("torch.")
        return model_config(source), EXPORT_DTYPES.get(name, torch.float32)
    if source.is_dir():
        return open_run(source, step=args.step).model_config, torch.float32
    try:
        return read_run_config(str(source), []).model, torch.float32
    except ConfigError as error:
        raise ConfigError(f"{source} is not a run directory, a Hugging Face folder or a recipe ({error})") from None


def _settings_dtype(source: Path) -> object:
    settings = read_settings(source)
    return settings.get("dtype") or settings.get("torch_dtype")


def _hash_bytes_per_s() -> float:
    data = bytes(_HASHED_BYTES)
    started_at = time.perf_counter()
    hashlib.sha256(data).digest()
    return _HASHED_BYTES / (time.perf_counter() - started_at)


def _compared_logits(config: ModelConfig, part: ModelConfig | None) -> str:
    if part is None:
        return "logits: not compared (--logits whole compares them, with the whole model in memory)"
    if part == config:
        return "logits: the whole model is compared with transformers"
    return f"logits: {part.n_layers} of {config.n_layers} layers are compared with transformers"


def _free_space(output: Path | None, needed: int) -> list[str]:
    if output is None:
        return []
    existing = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    return [
        f"disk space: {free:,} bytes are free in {existing}, {'enough' if free > needed else 'which is too little'}"
    ]
