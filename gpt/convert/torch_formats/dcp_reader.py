"""Read torch's distributed checkpoints (DCP: `.metadata`, `.distcp` files) without loading a pickle.

`.metadata` lists the tensors, the boxes into which each is divided, and the position of each box in the files. Nothing
that it names is run.
"""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.convert.torch_formats.pickle_as_data import GlobalName, PickledDict, PickledObject, as_dict, decode, described
from gpt.convert.torch_formats.torch_archive import FoundTensor, find_tensor
from gpt.errors import ConfigError
from gpt.files.boxes import overlapping, untiled
from gpt.files.regular import read_bytes
from gpt.files.safetensors import TensorLocation, read_into

METADATA = ".metadata"
CLASSES = "torch.distributed.checkpoint.metadata."
STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
# The names that metadata may contain. Any other name is a sign of manipulation. (No name is ever looked up.)
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
_MAX_METADATA_BYTES = 1 << 28


@dataclass(frozen=True)
class Box:
    """A part of a tensor, stored in `length` bytes from `start` in `file`, an archive of torch.save."""

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
    """A part of a slice: its offsets in the slice, its elements, and their CRC-32 if it is known."""

    offsets: tuple[int, ...]
    stored: TensorLocation
    crc: int | None


@dataclass(frozen=True)
class Slice:
    """A whole tensor, or one layer of a stacked one, located in the files."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[SlicePart, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_metadata(folder: Path) -> dict[str, SavedTensor]:
    """Return the tensors; other objects are left out. ConfigError: the file is missing or invalid."""
    path = folder / METADATA
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {METADATA}, which describes its tensors: it is not a complete torch_dist checkpoint"
        )
    decoded = decode(read_bytes(path, max_bytes=_MAX_METADATA_BYTES), where=str(path))
    for name in decoded.names:
        if name not in _NAMES and not name.startswith(_NAMES_BELOW):
            raise ConfigError(
                f"{path}: it names {name[:100]!r}, which no metadata needs. It was not run, and nothing was read"
            )
    root = _state(decoded.root, "Metadata", path)
    positions = _positions(root.get("storage_data"), path)
    _check_positions_apart(positions, path)
    n_positions = Counter(name for name, _ in positions)
    tensors = {}
    for name, node in as_dict(root.get("state_dict_metadata"), where=str(path)).items():
        _check_name(name, path)
        if isinstance(node, PickledObject) and node.of == CLASSES + "TensorStorageMetadata":
            fields = as_dict(node, where=str(path))
            chunks = fields.get("chunks")
            # A pickle can refer to one list of chunks from a thousand tensors, at two bytes each.
            stored = n_positions[name]
            if isinstance(chunks, list) and len(chunks) > stored > 0:
                raise ConfigError(f"{path}: {len(chunks)} parts of '{name}' are described, and {stored} stored")
            tensors[name] = _tensor(name, fields, positions, path)
    return tensors


def _check_name(name: str, path: Path) -> None:
    if not _is_name(name):
        raise ConfigError(f"{path}: {name[:100]!r} of {len(name)} characters is not a valid tensor name")


def _is_name(text: str) -> bool:
    """Return whether the name can be printed in one line."""
    return len(text) <= 1000 and text.isprintable()


def _positions(node: Any, path: Path) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    if not isinstance(node, PickledDict):
        raise ConfigError(f"{path}: expected the positions of tensors, found {described(node)}")
    found = {}
    for key, value in node.pairs:
        index = _state(key, "MetadataIndex", path)
        if index.get("offset") is None:
            continue  # not a tensor
        info = _state(value, STORAGE_INFO, path)
        file, start, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        name = index.get("fqn")
        if not isinstance(name, str) or not isinstance(file, str) or type(start) is not int or type(length) is not int:
            raise ConfigError(f"{path}: the position of a tensor is incomplete")
        if start < 0 or length < 0:
            raise ConfigError(f"{path}: the position {start}, of {length} bytes, is invalid")
        _check_name(name, path)
        if len(file) > 255 or not _is_name(file) or Path(file).name != file or file in ("", ".", ".."):
            raise ConfigError(
                f"{path}: {name[:100]!r} should be in {file[:100]!r}, which is not a file in the same folder"
            )
        if info.get("transform_descriptors"):
            raise ConfigError(f"{path}: '{name}' is stored compressed or encrypted, which is not supported")
        found[name, _size(index["offset"], path)] = (file, start, length)
    return found


def _check_positions_apart(positions: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]], path: Path) -> None:
    """Check that no two parts share bytes. Otherwise a small file could claim to be tensors of any size and number."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for file, start, length in positions.values():
        spans.setdefault(file, []).append((start, start + length))
    for file, found in spans.items():
        shared = overlapping(found)
        if shared is not None:
            raise ConfigError(f"{path}: two parts of tensors overlap in {file} from byte {shared[0]} on")


def _tensor(
    name: str, fields: dict[str, Any], positions: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]], path: Path
) -> SavedTensor:
    properties, chunks = fields.get("properties"), fields.get("chunks")
    values = properties.state if isinstance(properties, PickledObject) else None
    dtype = values[0] if isinstance(values, tuple) and values else None
    if not isinstance(dtype, GlobalName) or not isinstance(chunks, list):
        raise ConfigError(f"{path}: the description of '{name}' is incomplete")
    shape, boxes = _size(fields.get("size"), path), []
    for chunk in chunks:
        state = _state(chunk, "ChunkStorageMetadata", path)
        offsets, sizes = _size(state.get("offsets"), path), _size(state.get("sizes"), path)
        if (name, offsets) not in positions:
            raise ConfigError(f"{path}: the position of the part of '{name}' at {list(offsets)} is missing")
        if not len(offsets) == len(sizes) == len(shape) or any(
            begin + size > whole for begin, size, whole in zip(offsets, sizes, shape, strict=True)
        ):
            raise ConfigError(f"{path}: the part of '{name}' at {list(offsets)} is outside its shape {list(shape)}")
        boxes.append(Box(offsets, sizes, *positions[name, offsets]))
    return SavedTensor(shape, dtype.path, tuple(boxes))


def _state(node: Any, kind: str, path: Path) -> dict[str, Any]:
    """Return the state of an object of this class. ConfigError: it has another class."""
    of = kind if "." in kind else CLASSES + kind
    if not isinstance(node, PickledObject) or node.of != of:
        raise ConfigError(f"{path}: expected a {of}, found {described(node)}")
    return as_dict(node, where=str(path))


def _size(node: Any, path: Path) -> tuple[int, ...]:
    """Return a torch.Size as a tuple. DCP sometimes writes plain tuples and lists instead."""
    if isinstance(node, PickledObject) and node.of == "torch.Size" and len(node.arguments) == 1:
        node = node.arguments[0]
    if (
        not isinstance(node, tuple | list)
        or len(node) > _MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in node)
    ):
        raise ConfigError(f"{path}: expected the sizes of a tensor, found {described(node)}")
    return tuple(node)


def find_slices(folder: Path, name: str, saved: SavedTensor, layers: Sequence[int] | None) -> list[Slice]:
    """Locate a whole tensor, or these layers of it. ConfigError: a file is missing or cut off, or parts do not fit."""
    found = [(box, _find_box(folder, name, saved, box)) for box in saved.boxes]
    if layers is None:
        parts = [SlicePart(box.offsets, here.stored, here.crc) for box, here in found]
        return [_checked(folder, name, saved.shape, parts)]
    by_layer: dict[int, list[SlicePart]] = {layer: [] for layer in layers}
    for box, here in found:
        for layer in range(box.offsets[0], min(box.offsets[0] + box.shape[0], max(layers) + 1)):
            if layer in by_layer:
                by_layer[layer].append(_layer_of(box, here, layer - box.offsets[0]))
    return [_checked(folder, f"{name}, layer {layer}", saved.shape[1:], by_layer[layer]) for layer in layers]


def _find_box(folder: Path, name: str, saved: SavedTensor, box: Box) -> FoundTensor:
    path = folder / box.file
    if not path.is_file():
        raise ConfigError(f"{path} is missing, but {METADATA} says that '{name}' is there")
    found = find_tensor(path, start=box.start, length=box.length, what=f"'{name}'")
    stored = found.stored
    # One layer of a stacked tensor is saved as (rows, d), but described as (1, rows, d).
    if tuple(n for n in stored.shape if n != 1) != tuple(n for n in box.shape if n != 1):
        raise ConfigError(f"{path}: '{name}' is {list(stored.shape)}, but {list(box.shape)} in {METADATA}")
    if str(stored.dtype) != saved.dtype:
        raise ConfigError(f"{path}: '{name}' is {stored.dtype}, but {saved.dtype} in {METADATA}")
    return FoundTensor(TensorLocation(path, stored.dtype, box.shape, stored.start), found.crc)


def _layer_of(box: Box, found: FoundTensor, layer: int) -> SlicePart:
    """Return one layer of a box. `layer` counts from the first layer of the box."""
    stored, shape = found.stored, box.shape[1:]
    start = stored.start + layer * math.prod(shape) * stored.dtype.itemsize
    crc = found.crc if box.shape[0] == 1 else None
    return SlicePart(box.offsets[1:], TensorLocation(stored.file, stored.dtype, shape, start), crc)


def _checked(folder: Path, name: str, shape: tuple[int, ...], parts: list[SlicePart]) -> Slice:
    """Return the slice after checking that its parts fill the shape exactly: as many elements, and no overlap."""
    fault = untiled(shape, [(part.offsets, part.stored.shape) for part in parts])
    if fault is not None:
        raise ConfigError(f"{folder}: the parts of '{name}' do not fill its shape: {fault}")
    dtype = parts[0].stored.dtype if parts else torch.float32
    return Slice(shape, dtype, tuple(parts))


def read_slice(found: Slice) -> Tensor:
    """Read the elements. A part that is not contiguous in the whole needs one more copy of the part.

    ConfigError: a file became shorter, or a CRC-32 differs.
    """
    out = torch.empty(found.shape, dtype=found.dtype)
    for part in found.parts:
        box = out[tuple(slice(i, i + n) for i, n in zip(part.offsets, part.stored.shape, strict=True))]
        elements = box if box.is_contiguous() else torch.empty(part.stored.shape, dtype=found.dtype)
        read_into(part.stored, elements)
        if part.crc is not None and zlib.crc32(elements.reshape(-1).view(torch.uint8).numpy().data) != part.crc:
            raise ConfigError(
                f"{part.stored.file} is damaged: the elements at byte {part.stored.start} have another CRC-32"
            )
        if elements is not box:
            box.copy_(elements)
        del elements
    return out
