"""A Megatron-core checkpoint of a GPTModel as a source of tensors: names and shapes checked first, then read a layer at
a time. No pickle is loaded: neither its description, nor its arguments, nor its tensors' files are run.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.names import shapes
from gpt.convert.megatron.config import COMMON, config_of, read_arguments, told_by_tensors
from gpt.convert.megatron.names import (
    EMBEDDING,
    HEAD,
    LAYERS,
    NORMS,
    Piece,
    check_expressible,
    piece_shape,
    split,
    table,
    what_is_not_here,
)
from gpt.convert.torch_formats.dcp_reader import METADATA, SavedTensor, Slice, find_slices, read_metadata, read_slice
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

TRACKER = "latest_checkpointed_iteration.txt"
ABOUT = "metadata.json"
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
_PADDED = (EMBEDDING, HEAD)
_EXACT = (
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
)  # which fp32, in which checkpoints keep weights, holds exactly
# In what a named model and the arguments must agree; vocab_size may be known better, the rest is for training.
_ALIKE = (
    *("n_ctx", "n_layers", "d_model", "n_heads", "kv_heads", "ff_width", "positions", "norm", "activation", "bias"),
    *("tied", "norm_eps", "rope_theta", "rope_scaling"),
)


@dataclass(frozen=True)
class Source:
    """`slices`: each piece of the table found in the files, in its order, vocabulary padding included."""

    folder: Path
    config: ModelConfig
    slices: dict[Piece, Slice]
    notes: tuple[str, ...]  # what the user should know, such as what is left out

    @property
    def dtype(self) -> torch.dtype:
        """In which most of the elements are."""
        sizes: Counter[torch.dtype] = Counter()
        for found in self.slices.values():
            sizes[found.dtype] += found.size_bytes
        return sizes.most_common(1)[0][0]

    @property
    def size_bytes(self) -> int:
        return sum(found.size_bytes for found in self.slices.values())

    def read(self) -> Iterator[tuple[Piece, Tensor]]:
        """Their pieces, one at a time, without vocabulary padding."""
        for piece, found in self.slices.items():
            tensor = read_slice(found)
            yield piece, tensor[: self.config.vocab_size] if piece.theirs in _PADDED else tensor
            del tensor


def is_megatron(folder: Path) -> bool:
    """Whether a folder is a checkpoint of Megatron's, or holds some."""
    names = (METADATA, ABOUT, TRACKER)
    if (folder / "config.json").is_file():
        return False  # Hugging Face's, or plain safetensors
    return any((folder / name).is_file() for name in names) or any(folder.glob("mp_rank_*"))


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint itself, where `folder` holds several as Megatron-LM leaves them. ConfigError: there is none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    tracker = folder / TRACKER
    if not tracker.is_file():
        if step is not None:
            raise ConfigError(f"--step {step}: {folder} is one checkpoint alone; leave --step out")
        return folder
    latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if step is None and latest != "release" and not (latest.isdecimal() and len(latest) <= 18):
        raise ConfigError(f"{tracker} names no iteration, but {latest[:100]!r}")
    name = "release" if step is None and latest == "release" else f"iter_{int(latest) if step is None else step:07d}"
    if not (folder / name).is_dir():
        here = sorted(path.name for path in folder.glob("iter_*"))
        raise ConfigError(f"{folder} holds no checkpoint {name}; it holds {', '.join(here) or 'none'}")
    return folder / name


def open_source(folder: Path, *, model: ModelConfig | None = None, pieces: int | None = None) -> Source:
    """Read everything but the weights, and compare names and shapes with the model of its arguments, or with `model`.

    `pieces`: of the tokenizer, which are the vocabulary where the arguments tell its padded size alone.
    ConfigError: no such checkpoint, another format, an architecture that is not here, nothing that says how many heads
    there are, a `model` that contradicts the arguments, tensors missing, unknown or of another shape, files cut off.
    """
    check_format(folder)
    saved = {name: tensor for name, tensor in read_metadata(folder).items() if "_extra_state" not in name}
    states = [name for name in saved if _OPTIMIZER.match(name)]
    weights = {name: tensor for name, tensor in saved.items() if name not in set(states)}
    for name in weights:
        kind = what_is_not_here(name)
        if kind is not None:
            raise ConfigError(f"{folder}: '{name}' belongs to {kind}, which is not here; a dense GPTModel is")
    config, notes = _config(folder, weights, model, pieces)
    check_expressible(config)
    if states:
        notes.append(
            f"{len(states)} tensors of the optimizer are left out: Megatron's moments are not those of a run here"
        )
    slices = _find(folder, config, weights)
    rows = slices[Piece(EMBEDDING, None, ("embed.tokens.weight",))].shape[0]
    if rows > config.vocab_size:
        notes.append(f"{rows - config.vocab_size} rows of vocabulary are padding, which is left out")
    return Source(folder, config, slices, tuple(notes))


def check_format(folder: Path) -> None:
    """ConfigError: the folder is no torch_dist checkpoint whose save came to its end."""
    path = folder / ABOUT
    if not path.is_file():
        older = next(iter(sorted(folder.glob("mp_rank_*"))), None)
        if older is not None:
            raise ConfigError(
                f"{folder} is a checkpoint in Megatron's older format ({older.name}), pickles that are never loaded; "
                "save it anew with --ckpt-format torch_dist"
            )
        raise ConfigError(f"{folder} holds no {ABOUT}, which Megatron writes last: its save did not come to its end")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        backend = about["sharded_backend"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} does not say of which format the checkpoint is ({error!r})") from None
    if backend != "torch_dist":
        raise ConfigError(f"{path}: the format {str(backend)[:50]!r} is not read; torch_dist is")


def _config(
    folder: Path, weights: Mapping[str, SavedTensor], model: ModelConfig | None, pieces: int | None
) -> tuple[ModelConfig, list[str]]:
    arguments, path = read_arguments(folder), folder / COMMON
    told = {name: tensor.shape for name, tensor in weights.items()}
    if not any(name.startswith(LAYERS) for name in told):
        raise ConfigError(
            f"{folder} holds no layers of a GPTModel ('{LAYERS}...'); its tensors: {', '.join(sorted(told)[:3])}"
        )
    if arguments is None or "num_attention_heads" not in arguments:
        if model is None:
            raise ConfigError(
                f"{folder} holds no arguments of Megatron-LM, and tensors do not tell the number of heads; name a "
                f"recipe with the model's [model] section (--model FILE); the tensors tell: {told_by_tensors(told)}"
            )
        return model, []
    described = config_of(arguments, where=str(path), pieces=pieces)
    if model is None:
        return described, []
    for key in _ALIKE:
        here, there = getattr(model, key), getattr(described, key)
        if here != there:
            raise ConfigError(f"--model says {key} = {here}, but {path} says {there}; leave --model out")
    return model, []


def _find(folder: Path, config: ModelConfig, weights: Mapping[str, SavedTensor]) -> dict[Piece, Slice]:
    """Every piece of the table in the files; layers may be stacked, or numbered in their names."""
    ours = shapes(config)
    left = _by_their_names(folder, weights)
    found: dict[Piece, Slice] = {}
    wanted: dict[str, list[Piece]] = {}
    for piece in table(config):
        numbered = piece.theirs.replace(LAYERS, f"{LAYERS}{piece.layer}.", 1)
        wanted.setdefault(piece.theirs if piece.theirs in left or numbered not in left else numbered, []).append(piece)
    missing = [name for name in wanted if name not in left]
    unknown = [name for name in left if name not in wanted]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} tensors of this GPTModel are missing, '{missing[0]}' the first")
    if unknown:
        wrong.append(f"{len(unknown)} tensors are unknown to it, '{left[unknown[0]][0]}' the first")
    if wrong:
        raise ConfigError(f"{folder}: {'; '.join(wrong)}")
    for name, pieces in wanted.items():
        theirs, saved = left[name]
        stacked = pieces[0].layer is not None and name == pieces[0].theirs
        _check_shape(folder, theirs, saved, pieces[0], ours, layers=config.n_layers if stacked else None)
        layers = [piece.layer for piece in pieces if piece.layer is not None] if stacked else None
        for piece, here in zip(pieces, find_slices(folder, theirs, saved, layers), strict=True):
            found[piece] = here
    return {piece: found[piece] for piece in table(config)}


def _by_their_names(folder: Path, weights: Mapping[str, SavedTensor]) -> dict[str, tuple[str, SavedTensor]]:
    """The tensors under the names of the table, each with the name that it has in the files."""
    found: dict[str, tuple[str, SavedTensor]] = {}
    for name, saved in weights.items():
        usual = name
        for apart, fused in NORMS.items():
            usual = usual.replace(f".{apart}", f".{fused}")
        if usual in found:
            raise ConfigError(f"{folder}: '{found[usual][0]}' and '{name}' are the same tensor of a GPTModel")
        found[usual] = (name, saved)
    return found


def _check_shape(
    folder: Path,
    name: str,
    saved: SavedTensor,
    piece: Piece,
    ours: Mapping[str, tuple[int, ...]],
    *,
    layers: int | None,
) -> None:
    expected = piece_shape(piece, ours)
    if layers is not None:
        expected = (layers, *expected)
    same = saved.shape == expected
    if piece.theirs in _PADDED and len(saved.shape) == len(expected):
        same = saved.shape[0] >= expected[0] and saved.shape[1:] == expected[1:]
    if not same:
        raise ConfigError(
            f"{folder}: '{name}' is {list(saved.shape)}, but {list(expected)} in the model that is described"
        )
    if saved.dtype not in _EXACT:
        raise ConfigError(f"{folder}: '{name}' is {saved.dtype}; float32, float16 and bfloat16 are read")


def to_ours(config: ModelConfig, pieces: Iterable[tuple[Piece, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Our (name, tensor) for each of their pieces."""
    for piece, tensor in pieces:
        yield from zip(piece.ours, split(config, piece, tensor), strict=True)
        del tensor
