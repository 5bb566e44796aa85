"""Runs to Megatron-core checkpoints (torch_dist, GPTModel) and back, with a progress bar, and what was verified.

OUT/latest_checkpointed_iteration.txt   "release", as Megatron-LM's --load looks for it
OUT/release/                            what megatron-core's dist_checkpointing.load reads, on any layout
OUT/tokenizer/                          the tokenizer's files, which Megatron keeps elsewhere
OUT/hugging_face/                       what else came with a model of Hugging Face, such as its chat template
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.convert.hugging_face.export import COMPANIONS
from gpt.convert.hugging_face.names import shapes
from gpt.convert.megatron.config import COMMON, arguments_of
from gpt.convert.megatron.names import Piece, check_expressible, objects, stacked_shapes, to_megatron
from gpt.convert.megatron.source import ABOUT, TRACKER, Source, check_format, find_checkpoint, open_source, to_ours
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist
from gpt.convert.torch_formats.pickle_as_data import Made, encode
from gpt.convert.torch_formats.torch_archive import write_archive
from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.files.safetensors import digest
from gpt.model.config import ModelConfig
from gpt.tokenizer.tokenizers import load_tokenizer, tokenizer_files
from launch.config.recipe import build, find_recipe, read_toml
from launch.conversion.hugging_face import EXPORT_DTYPES
from launch.processes.terminal import progress_bar
from launch.runs.imported_run import HUGGING_FACE, IMPORTED, read_weights, write_run
from launch.runs.saved_run import SavedRun
from parallel.checkpoint import find as checkpoint

RELEASE = "release"  # Megatron-LM's name for a checkpoint that no training of its own left
NOT_COMPARED = (
    "logits not compared: Megatron's model runs on CUDA devices (docs/conversion.md says what is known of them)"
)


def read_model(recipe: Path) -> ModelConfig:
    """The [model] section of a recipe, or of a file with nothing else. ConfigError: it has none."""
    path = find_recipe(str(recipe))
    section = read_toml(path).get("model")
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no [model] section")
    return build(ModelConfig, section, where="model")


def open_checkpoint(
    folder: Path, *, step: int | None = None, recipe: Path | None = None, pieces: int | None = None
) -> Source:
    """A checkpoint of Megatron's, everything but its weights read and checked; errors as `open_source`."""
    model = None if recipe is None else read_model(recipe)
    return open_source(find_checkpoint(folder, step), model=model, pieces=pieces)


def import_checkpoint(
    folder: Path,
    output: Path,
    *,
    step: int | None = None,
    recipe: Path | None = None,
    tokenizer_file: Path | None = None,
) -> list[str]:
    """Make a run directory of a Megatron checkpoint. Memory: about the largest tensor of one layer.

    ConfigError: as `open_source`, no tokenizer or one that does not fit, an output that exists. Nothing is left at
    `output` then. Returns what to tell the user.
    """
    check_format(find_checkpoint(folder, step))
    tokenizer_file = _tokenizer_file(folder, tokenizer_file)
    pieces = load_tokenizer(tokenizer_file).vocab_size
    source = open_checkpoint(folder, step=step, recipe=recipe, pieces=pieces)
    if pieces > source.config.vocab_size:
        raise ConfigError(
            f"{tokenizer_file} has {pieces} pieces, but {source.folder} a vocabulary of {source.config.vocab_size}: it "
            "is another model's tokenizer"
        )
    digests: dict[Piece, str] = {}
    with partial_folder(output) as partial:
        with progress_bar("writing tensors", total=len(source.slices)) as advance:
            path = write_run(
                partial,
                to_ours(source.config, _noted(source, digests, advance)),
                config=source.config,
                tokenizer_file=tokenizer_file,
                about={"from": str(source.folder), "format": "Megatron", "dtype": _name(source.dtype)},
                order=[name for piece in source.slices for name in piece.ours],
            )
            _bring_companions(folder, partial)
        _verify_import(source, path, digests)
    return [
        *source.notes,
        f"{output}: Megatron's GPTModel, {source.config.parameters:,} parameters, {_name(source.dtype)} to float32, "
        f"which holds it exactly; the [model] section of a recipe is in {output / 'model.toml'}",
        f"verified: {len(digests)} tensors back to {source.folder} bit for bit; {NOT_COMPARED}",
    ]


def export_run(saved: SavedRun, output: Path, *, dtype: str | None = None) -> list[str]:
    """Write `output` and read it back; returns what to tell the user. Memory: about the largest tensor of one layer.

    ConfigError: a model that GPTModel cannot be, an output that exists. Nothing is left at `output` then.
    """
    config = saved.model_config
    check_expressible(config)
    elements = EXPORT_DTYPES[_imported_dtype(saved) if dtype is None else dtype]
    digests: dict[str, str] = {}
    with partial_folder(output) as partial:
        folder = partial / RELEASE
        folder.mkdir()
        with progress_bar("writing tensors", total=len(shapes(config))) as advance:
            read = _noted_ours(saved.weights(), config, elements, digests, advance)
            parts = (_part(piece, tensor) for piece, tensor in to_megatron(config, read))
            write_torch_dist(folder, parts, shapes=stacked_shapes(config), dtype=elements, objects=objects(config))
        _write_companions(partial, folder, saved)
        _verify_export(folder, config, digests)
    return [
        f"{output}: Megatron's GPTModel, {config.parameters:,} parameters in {_name(elements)}, step {saved.step:,}; "
        f"{output / RELEASE} is what dist_checkpointing.load reads",
        f"verified: {len(digests)} tensors bit for bit; {NOT_COMPARED}",
    ]


def _tokenizer_file(folder: Path, named: Path | None) -> Path:
    """The one that the user names, or the folder of one that an export of ours left beside the checkpoint."""
    beside = folder / "tokenizer"
    if named is None and not beside.is_dir():
        raise ConfigError(
            f"{folder} holds no tokenizer, as Megatron's checkpoints do not; name one with --tokenizer FILE"
        )
    return beside if named is None else named


def _noted(source: Source, digests: dict[Piece, str], advance: Any) -> Iterator[tuple[Piece, Tensor]]:
    for piece, tensor in source.read():
        digests[piece] = digest(tensor, tensor.dtype)
        yield piece, tensor
        del tensor  # or the next one would be read while this one is still held
        advance(piece.title)


def _verify_import(source: Source, path: Path, digests: dict[Piece, str]) -> None:
    """The checkpoint's tensors back as pieces of theirs, in their dtype, bit for bit."""
    reason = checkpoint.verify(path)
    assert reason is None, reason
    names = [name for piece in source.slices for name in piece.ours]
    found = 0
    for piece, tensor in to_megatron(source.config, read_weights(path, names)):
        if digest(tensor, source.slices[piece].dtype) != digests.get(piece):
            raise RuntimeError(f"{path}: '{piece.title}' does not come back as {source.folder} has it")
        found += 1
        del tensor
    assert found == len(digests)


def _noted_ours(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    dtype: torch.dtype,
    digests: dict[str, str],
    advance: Any,
) -> Iterator[tuple[str, Tensor]]:
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    for name, tensor in tensors:
        digests[name] = digest(tensor[: rows[name]], dtype)
        yield name, tensor
        del tensor
        advance(name)


def _part(piece: Piece, tensor: Tensor) -> Part:
    offsets = (0,) * tensor.dim() if piece.layer is None else (piece.layer, *(0,) * tensor.dim())
    return Part(piece.theirs, offsets, tensor)


def _bring_companions(source: Path, target: Path) -> None:
    """What came with a model of Hugging Face, where the source has it."""
    names = [name for name in COMPANIONS if (source / HUGGING_FACE / name).is_file()]
    if names:
        (target / HUGGING_FACE).mkdir()
    for name in names:
        shutil.copyfile(source / HUGGING_FACE / name, target / HUGGING_FACE / name)


def _write_companions(partial: Path, folder: Path, saved: SavedRun) -> None:
    """What Megatron reads besides tensors, and the tokenizer."""
    arguments = Made("argparse.Namespace", (), arguments_of(saved.model_config))
    with open(folder / COMMON, "xb") as file:
        write_archive(file, encode({"args": arguments, "checkpoint_version": 3.0, "iteration": 0}))
    about = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    about |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / ABOUT).write_text(json.dumps(about))
    (partial / TRACKER).write_text(RELEASE)
    (partial / "tokenizer").mkdir()
    for file_ in tokenizer_files(saved.tokenizer_file):
        shutil.copyfile(file_, partial / "tokenizer" / file_.name)
    _bring_companions(saved.run_directory, partial)


def _verify_export(folder: Path, config: ModelConfig, digests: dict[str, str]) -> None:
    """The written checkpoint read as any other, and its own arguments with it."""
    source = open_source(folder, model=config)
    found = 0
    for name, tensor in to_ours(source.config, source.read()):
        if digest(tensor, tensor.dtype) != digests[name]:
            raise RuntimeError(f"{folder}: the tensor '{name}' did not come back as it was written")
        found += 1
        del tensor
    if found != len(digests):
        raise RuntimeError(f"{folder}: {found} of {len(digests)} tensors came back")


def _imported_dtype(saved: SavedRun) -> str:
    imported = checkpoint.read_state(saved.checkpoint_path).get(IMPORTED)
    return str(imported["dtype"]) if isinstance(imported, dict) else "float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
