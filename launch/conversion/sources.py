"""Shared parts of the converters: a checkpoint as a source of tensors, and the files that are copied with a model."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.export import COMPANIONS
from gpt.convert.hugging_face.tokenizer import SAMPLES
from gpt.errors import ConfigError
from gpt.files.regular import copy_folder
from gpt.files.safetensors import TensorSpec
from gpt.tokenizer.faults import try_tokenizer
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, tokenizer_files
from launch.config.run_arguments import EXPORT_DTYPE_NAMES
from launch.runs.imported_run import HUGGING_FACE, IMPORTED, MODEL, read_weights
from launch.runs.saved_run import SavedRun
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors

EXPORT_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in EXPORT_DTYPE_NAMES}


@dataclass(frozen=True)
class CheckpointSource:
    """Tensors of a run's checkpoint, in the order of `specs`; they stay on disk until they are read."""

    saved: SavedRun
    specs: dict[str, TensorSpec]

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Read the (name, tensor) pairs under their names in the checkpoint, one at a time."""
        return read_tensors(self.saved.checkpoint, self.specs)


def checkpoint_source(saved: SavedRun, *, weights_only: bool) -> CheckpointSource:
    """Return all tensors of a checkpoint, or its weights, as a source."""
    specs = {name: TensorSpec(stored.shape, stored.dtype) for name, stored in saved.checkpoint.index.items()}
    names = [name for name in widest_first(specs) if name.startswith(MODEL) or not weights_only]
    return CheckpointSource(saved, {name: specs[name] for name in names})


def widest_first(specs: dict[str, TensorSpec]) -> list[str]:
    """Return the names, widest elements first: each tensor is then aligned to its elements in the file."""
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def verified_weights(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Read weights of a checkpoint that we have just written, after checking its digests."""
    return read_weights(verify_checkpoint(path), names)


def export_dtype(saved: SavedRun, requested: str | None) -> torch.dtype:
    """Return the dtype of exported weights: the requested one, else the one of the import, else float32."""
    if requested is None:
        requested = saved.checkpoint.state.get(IMPORTED, {}).get("dtype", "float32")
    if requested not in EXPORT_DTYPES:
        raise ConfigError(
            f"{saved.checkpoint.path} was imported in {requested!r}, which is unknown. Use --dtype with one of "
            f"{', '.join(EXPORT_DTYPES)}"
        )
    return EXPORT_DTYPES[requested]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without `torch.`"""
    return str(dtype).removeprefix("torch.")


def load_foreign_tokenizer(path: Path) -> Tokenizer:
    """Load a stranger's tokenizer after a trial in a separate process: on some files its library aborts."""
    try_tokenizer(path, SAMPLES)
    return load_tokenizer(path)


def check_tokenizer_fits(tokenizer_file: Path, size: int, *, folder: Path, vocab_size: int) -> None:
    """Check that the vocabulary of the model in `folder` covers the tokenizer. ConfigError: it does not."""
    if size > vocab_size:
        raise ConfigError(
            f"{tokenizer_file} has {size} pieces, but {folder} a vocabulary of {vocab_size}: it is another model's "
            "tokenizer"
        )


def copy_tokenizer(saved: SavedRun, folder: Path) -> None:
    """Copy the tokenizer's files to `folder`/tokenizer."""
    (folder / "tokenizer").mkdir()
    for file in tokenizer_files(saved.tokenizer_file):
        shutil.copyfile(file, folder / "tokenizer" / file.name)


def copy_folders(source: Path, target: Path) -> None:
    """Copy the folders of a run or an export that travel with the weights, if they are there."""
    for name in ("tokenizer", HUGGING_FACE):
        if (source / name).is_dir():
            copy_folder(source / name, target / name)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the other files of a Hugging Face model (not weights, not tokenizer). Without any, make no folder."""
    names = [name for name in COMPANIONS if (source / name).is_file()]
    if names:
        target.mkdir()
    for name in names:
        shutil.copyfile(source / name, target / name)
