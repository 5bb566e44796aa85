"""What a conversion would read, write and hold in memory, from sizes alone; reads no weight and writes nothing."""

import argparse
import hashlib
import math
import shutil
import time
from pathlib import Path

import torch

from gpt.convert.hugging_face.config import CONFIG, config_json, model_config, read_settings
from gpt.convert.hugging_face.logits import part_to_compare
from gpt.convert.hugging_face.names import family_of, shapes, table, their_shape
from gpt.convert.hugging_face.source import TITLES
from gpt.convert.megatron.names import check_expressible, piece_shape
from gpt.convert.megatron.names import table as megatron_table
from gpt.convert.megatron.source import is_megatron
from gpt.errors import ConfigError
from gpt.files.safetensors import MAX_FILE_BYTES, TensorSpec, group_into_files
from gpt.model.config import ModelConfig
from launch.config.run_config import read_run_config
from launch.conversion.hugging_face import EXPORT_DTYPES
from launch.conversion.megatron import NOT_COMPARED, open_checkpoint
from launch.conversion.plain import is_plain, read_model_config
from launch.runs.imported_run import expected_weights
from launch.runs.saved_run import open_run

PROCESS_BYTES = 700 << 20  # Python with torch and transformers loaded, and blocks on their way
_HASHED_BYTES = 1 << 26


def describe_size(args: argparse.Namespace) -> list[str]:
    """Lines for the user. ConfigError: a source that is none, a model that the format cannot express."""
    config, source_dtype = _model(args)
    dtype = EXPORT_DTYPES[args.dtype or "float32"] if args.to in ("hf", "megatron") else torch.float32
    megatron = args.to == "megatron" or is_megatron(args.run)
    title, theirs = _their_tensors(config, megatron)
    written = theirs if args.to in ("hf", "megatron") else _our_tensors(config, megatron)
    write_bytes = sum(math.prod(shape) for shape in written.values()) * dtype.itemsize
    read_bytes = sum(math.prod(shape) for shape in theirs.values()) * source_dtype.itemsize
    largest = max(theirs, key=lambda name: math.prod(theirs[name]))
    largest_bytes = math.prod(theirs[largest]) * 4
    part = None if megatron else part_to_compare(config, args.logits)
    peak = PROCESS_BYTES + max(largest_bytes * 3 // 2, 0 if part is None else 4 * part.parameters)
    specs = {name: TensorSpec(shape, dtype) for name, shape in written.items()}
    rate = _hash_rate()
    passes = 2 * read_bytes + 2 * write_bytes
    return [
        f"{args.run}: {title} architecture, {config.parameters:,} parameters, {len(theirs)} tensors",
        f"reads {read_bytes:,} bytes in {_name(source_dtype)}; writes {write_bytes:,} bytes in {_name(dtype)}, "
        f"{len(group_into_files(specs, MAX_FILE_BYTES))} files, then reads them back",
        f"memory: about {peak:,} bytes at most; the largest tensor, '{largest}', has {largest_bytes:,} in fp32",
        f"digests: {passes:,} bytes, {passes / rate / 60:.1f} minutes at the {rate / 1e6:,.0f} MB/s of one core here; "
        "the disk's time comes to it",
        NOT_COMPARED if megatron else _compared(config, part),
        *_room(args.output, write_bytes),
    ]


def _their_tensors(config: ModelConfig, megatron: bool) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The architecture's name, and the shapes of its tensors; of Megatron's stacked ones, of each layer."""
    ours = shapes(config)
    if megatron:
        check_expressible(config)
        return "Megatron's GPTModel", {piece.title: piece_shape(piece, ours) for piece in megatron_table(config)}
    config_json(config, dtype=torch.float32)
    return TITLES[family_of(config)], {entry.theirs: their_shape(entry, ours) for entry in table(config)}


def _our_tensors(config: ModelConfig, megatron: bool) -> dict[str, tuple[int, ...]]:
    order = [name for piece in megatron_table(config) for name in piece.ours] if megatron else None
    return {name: entry.shape for name, entry in expected_weights(config, order).items()}


def _model(args: argparse.Namespace) -> tuple[ModelConfig, torch.dtype]:
    """The model and the precision in which its weights lie there."""
    source: Path = args.run
    if is_megatron(source):
        found = open_checkpoint(source, step=args.step, recipe=args.model)
        return found.config, found.dtype
    if is_plain(source):
        return read_model_config(source), torch.float32
    if (source / CONFIG).is_file() and not (source / "checkpoints").is_dir():
        name = str(_settings_dtype(source)).removeprefix("torch.")
        known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        return model_config(source), known.get(name, torch.float32)
    if source.is_dir():
        return open_run(source, step=args.step).model_config, torch.float32
    try:
        return read_run_config(str(source), []).model, torch.float32
    except ConfigError as error:
        raise ConfigError(f"{source} is no run directory, no Hugging Face folder and no recipe ({error})") from None


def _settings_dtype(source: Path) -> object:
    settings = read_settings(source)
    return settings.get("dtype") or settings.get("torch_dtype")


def _hash_rate() -> float:
    data = bytes(_HASHED_BYTES)
    started_at = time.perf_counter()
    hashlib.sha256(data).digest()
    return _HASHED_BYTES / (time.perf_counter() - started_at)


def _compared(config: ModelConfig, part: ModelConfig | None) -> str:
    if part is None:
        return "logits: not compared (--logits whole does it, with the whole model in memory)"
    if part == config:
        return "logits: the whole model is compared with transformers"
    return f"logits: {part.n_layers} of {config.n_layers} layers are compared with transformers"


def _room(output: Path | None, needed: int) -> list[str]:
    if output is None:
        return []
    existing = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    return [f"room: {free:,} bytes are free in {existing}, {'enough' if free > needed else 'which is not enough'}"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
