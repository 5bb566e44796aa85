"""Reads torch's distributed checkpoints (DCP: `.metadata`, `.distcp` files) without loading a pickle.

`.metadata` says which tensors there are, into which boxes each is cut, and where each lies. Nothing it names is run.
"""

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.convert.torch_formats.pickle_as_data import Made, Name, Table, as_dict, decode, described
from gpt.convert.torch_formats.torch_archive import FoundTensor, find_tensor
from gpt.errors import ConfigError
from gpt.files.safetensors import TensorLocation, read_into

METADATA = ".metadata"
CLASSES = "torch.distributed.checkpoint.metadata."
STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
# What such a description may name; anything else was put there by someone. (No name is ever looked up, these neither.)
_NAMES = {
    *("torch.Size", "torch.serialization._get_layout", "torch.device"),
    *(f"torch.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("torch.float16", "torch.float32", "torch.float64", "torch.bfloat16", "torch.bool"),
    *("torch.float8_e4m3fn", "torch.float8_e5m2", "torch.float8_e8m0fnu"),
    *("collections.OrderedDict", "collections.defaultdict", "pathlib.PosixPath", "pathlib._local.PosixPath"),
    *("builtins.set", "builtins.frozenset", "builtins.slice"),
}
_NAMES_BELOW = (
    *("torch.distributed.checkpoint.", "torch.distributed._shard.", "torch.distributed.tensor."),
    "megatron.core.dist_checkpointing.",
)
_MAX_DIMENSIONS = 16
_MAX_METADATA_BYTES = 1 << 30


@dataclass(frozen=True)
class Box:
    """A part of a tensor and where it lies: `length` bytes from `start` in `file`, an archive of torch.save."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class SavedTensor:
    """A whole tensor as `.metadata` describes it."""

    shape: tuple[int, ...]
    dtype: str  # such as 'torch.bfloat16'
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class SlicePart:
    """A part's place in its slice, and its elements; their CRC-32 where it is known."""

    offsets: tuple[int, ...]
    stored: TensorLocation
    crc: int | None


@dataclass(frozen=True)
class Slice:
    """A whole tensor, or one layer of a stacked one, found in the files."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[SlicePart, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_metadata(folder: Path) -> dict[str, SavedTensor]:
    """The tensors, without the objects that are none. ConfigError: no such file, or it is not such a one."""
    path = folder / METADATA
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {METADATA}, which describes its tensors: no torch_dist checkpoint, or not whole"
        )
    if path.stat().st_size > _MAX_METADATA_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes are too many for a description of tensors")
    decoded = decode(path.read_bytes(), where=str(path))
    for name in decoded.names:
        if name not in _NAMES and not name.startswith(_NAMES_BELOW):
            raise ConfigError(
                f"{path}: it names {name[:100]!r}, which no description of tensors needs; it was not run, "
                "and nothing was read"
            )
    root = _made(decoded.root, "Metadata", path)
    places = _places(root.get("storage_data"), path)
    tensors = {}
    for name, node in as_dict(root.get("state_dict_metadata"), where=str(path)).items():
        if not _is_name(name):
            raise ConfigError(f"{path}: {name[:100]!r} of {len(name)} characters is no tensor's name")
        if isinstance(node, Made) and node.of == CLASSES + "TensorStorageMetadata":
            tensors[name] = _tensor(name, as_dict(node, where=str(path)), places, path)
    return tensors


def _is_name(text: str) -> bool:
    """Whether it can be shown in one line."""
    return len(text) <= 1000 and text.isprintable()


def _places(node: Any, path: Path) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    if not isinstance(node, Table):
        raise ConfigError(f"{path}: {described(node)} where the places of tensors belong")
    found = {}
    for key, value in node.pairs:
        index = _made(key, "MetadataIndex", path)
        if index.get("offset") is None:
            continue  # an object's
        info = _made(value, STORAGE_INFO, path)
        file, start, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        name = index.get("fqn")
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or not isinstance(file, str)
            or type(start) is not int
            or type(length) is not int
        ):
            raise ConfigError(f"{path}: the place of a tensor is not told in full")
        if Path(file).name != file or file in ("", ".", "..") or not _is_name(file) or len(file.encode()) > 255:
            raise ConfigError(f"{path}: {name[:100]!r} is said to lie in {file[:100]!r}, which is no file beside it")
        if info.get("transform_descriptors"):
            raise ConfigError(f"{path}: '{name}' is stored compressed or encrypted, which is not read here")
        found[name, _size(index["offset"], path)] = (file, start, length)
    return found


def _tensor(
    name: str, fields: dict[str, Any], places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]], path: Path
) -> SavedTensor:
    properties, chunks = fields.get("properties"), fields.get("chunks")
    state = properties.state if isinstance(properties, Made) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(dtype, Name) or not isinstance(chunks, list):
        raise ConfigError(f"{path}: '{name}' is not described in full")
    shape, boxes = _size(fields.get("size"), path), []
    for chunk in chunks:
        told = _made(chunk, "ChunkStorageMetadata", path)
        offsets, sizes = _size(told.get("offsets"), path), _size(told.get("sizes"), path)
        if (name, offsets) not in places:
            raise ConfigError(f"{path}: where the part of '{name}' at {list(offsets)} lies is not told")
        if not len(offsets) == len(sizes) == len(shape) or any(
            begin + size > whole for begin, size, whole in zip(offsets, sizes, shape, strict=True)
        ):
            raise ConfigError(f"{path}: the part of '{name}' at {list(offsets)} lies beyond its shape {list(shape)}")
        boxes.append(Box(offsets, sizes, *places[name, offsets]))
    return SavedTensor(shape, dtype.path, tuple(boxes))


def _made(node: Any, kind: str, path: Path) -> dict[str, Any]:
    """The state of an object of this class. ConfigError: it is of another."""
    of = kind if "." in kind else CLASSES + kind
    if not isinstance(node, Made) or node.of != of:
        raise ConfigError(f"{path}: {described(node)} where a {of} belongs")
    return as_dict(node, where=str(path))


def _size(node: Any, path: Path) -> tuple[int, ...]:
    """A torch.Size. DCP also writes plain tuples and lists in its place."""
    if isinstance(node, Made) and node.of == "torch.Size" and len(node.arguments) == 1:
        node = node.arguments[0]
    if (
        not isinstance(node, tuple | list)
        or len(node) > _MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in node)
    ):
        raise ConfigError(f"{path}: {described(node)} where a tensor's sizes belong")
    return tuple(node)


def find_slices(folder: Path, name: str, saved: SavedTensor, layers: Sequence[int] | None) -> list[Slice]:
    """The whole tensor, or these layers of it. ConfigError: a file is missing or cut off, parts overlap or lack."""
    found = [(box, _find_box(folder, name, saved, box)) for box in saved.boxes]
    _check_apart(folder, name, [here.stored for _, here in found])
    if layers is None:
        parts = tuple(SlicePart(box.offsets, here.stored, here.crc) for box, here in found)
        return [_checked(folder, name, saved.shape, parts)]
    slices = []
    for layer in layers:
        held = [(box, here) for box, here in found if box.offsets[0] <= layer < box.offsets[0] + box.shape[0]]
        cut = tuple(_layer_of(box, here, layer - box.offsets[0]) for box, here in held)
        slices.append(_checked(folder, f"{name}, layer {layer}", saved.shape[1:], cut))
    return slices


def _find_box(folder: Path, name: str, saved: SavedTensor, box: Box) -> FoundTensor:
    path = folder / box.file
    if not path.is_file():
        raise ConfigError(f"{path} is missing; {METADATA} says that '{name}' lies there")
    found = find_tensor(path, start=box.start, length=box.length, what=f"'{name}'")
    stored = found.stored
    # A layer's part of a stacked tensor was (rows, d) when it was saved, and is (1, rows, d) in the description.
    if tuple(n for n in stored.shape if n != 1) != tuple(n for n in box.shape if n != 1):
        raise ConfigError(f"{path}: '{name}' is {list(stored.shape)} there, but {list(box.shape)} in {METADATA}")
    if str(stored.dtype) != saved.dtype:
        raise ConfigError(f"{path}: '{name}' is {stored.dtype} there, but {saved.dtype} in {METADATA}")
    return FoundTensor(TensorLocation(path, stored.dtype, box.shape, stored.start), found.crc)


def _check_apart(folder: Path, name: str, parts: Iterable[TensorLocation]) -> None:
    """That no two parts are the same bytes, or a small file could be told to be a tensor of any size."""
    for a, b in itertools.pairwise(sorted(parts, key=lambda part: (part.file, part.start))):
        if a.file == b.file and b.start < a.start + a.size_bytes:
            raise ConfigError(f"{folder / METADATA}: two parts of '{name}' lie at one place in {a.file}")


def _layer_of(box: Box, found: FoundTensor, layer: int) -> SlicePart:
    """One layer of a box, counted from its first."""
    stored, shape = found.stored, box.shape[1:]
    start = stored.start + layer * math.prod(shape) * stored.dtype.itemsize
    crc = found.crc if box.shape[0] == 1 else None
    return SlicePart(box.offsets[1:], TensorLocation(stored.file, stored.dtype, shape, start), crc)


def _checked(folder: Path, name: str, shape: tuple[int, ...], parts: tuple[SlicePart, ...]) -> Slice:
    """That the parts fill the shape exactly: as many elements, and no two at one place."""
    held = sum(math.prod(part.stored.shape) for part in parts)
    if held != math.prod(shape) or any(_overlap(a, b) for a, b in itertools.combinations(parts, 2)):
        raise ConfigError(f"{folder}: the parts of '{name}' do not make up its shape {list(shape)}")
    dtype = parts[0].stored.dtype if parts else torch.float32
    return Slice(shape, dtype, parts)


def _overlap(a: SlicePart, b: SlicePart) -> bool:
    spans = zip(a.offsets, b.offsets, a.stored.shape, b.stored.shape, strict=True)
    return all(max(i, j) < min(i + m, j + n) for i, j, m, n in spans)


def read_slice(found: Slice) -> Tensor:
    """The elements, by plain reads: of a part that is no run of bytes in the whole, a copy more.

    ConfigError: a file became shorter, or elements are not those that were written.
    """
    out = torch.empty(found.shape, dtype=found.dtype)
    for part in found.parts:
        box = out[tuple(slice(i, i + n) for i, n in zip(part.offsets, part.stored.shape, strict=True))]
        elements = box if box.is_contiguous() else torch.empty(part.stored.shape, dtype=found.dtype)
        read_into(part.stored, elements)
        if part.crc is not None and zlib.crc32(elements.reshape(-1).view(torch.uint8).numpy().data) != part.crc:
            raise ConfigError(
                f"{part.stored.file}: damaged: the elements at byte {part.stored.start} have another CRC-32"
            )
        if elements is not box:
            box.copy_(elements)
        del elements
    return out
