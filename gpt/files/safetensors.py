"""Read and write safetensors files one tensor at a time, in any order. Memory stays near one tensor.

The safetensors library maps a file into memory, so every page that was read counts as memory of this process, and its
writer needs all tensors of a file at once. The format is simple: 8 bytes with the length of the header, a JSON header
with dtype, shape and position of each tensor, then the elements. Plain reads and writes are enough for it.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError, file_error
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_FILE_BYTES = 5 * 10**9
MAX_HEADER_BYTES = 1 << 25  # 300,000 tensors in one file; as JSON it takes up to 30 times as much memory
_MAX_DIMENSIONS = 16
_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that is to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorLocation:
    """A contiguous tensor in a file. `start` is the position of its first byte."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorLocation]:
    """Return the tensors of one file by name. ConfigError: the file is cut off or not a safetensors file.

    As in the safetensors library, tensors must follow one another without a gap up to the end of the file. Otherwise a
    small file could claim to be a model of any size.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ConfigError(f"{path} is not a complete safetensors file: its {size} bytes do not hold its header")
            header = decode_json(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _location(path, entry, start=8 + length) for name, entry in header.items()}
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a safetensors file ({type(error).__name__}: {str(error)[:200]})") from None
    end = 8 + length
    for name, location in sorted(found.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
        if location.start + location.size_bytes > size:
            raise ConfigError(f"{path} is cut off: it has {size} bytes, and '{name[:200]}' ends beyond them")
        if location.start != end:
            raise ConfigError(f"{path} is damaged: '{name[:200]}' overlaps the tensor before it, or leaves a gap")
        end += location.size_bytes
    if end != size:
        raise ConfigError(f"{path} is damaged: {size - end} bytes after its last tensor belong to none")
    return found


def _location(path: Path, entry: dict[str, Any], *, start: int) -> TensorLocation:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    counts = (begin, end, *shape[:_MAX_DIMENSIONS])
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or not 0 <= n < 1 << 63 for n in counts):
        raise ValueError("offsets and shapes must be lists of whole numbers")
    location = TensorLocation(path, DTYPES[entry["dtype"]], tuple(shape), start + begin)
    if end - begin != location.size_bytes:
        raise ValueError(f"{end - begin} bytes for a tensor of {location.size_bytes}")
    return location


def read_into(location: TensorLocation, out: Tensor) -> None:
    """Fill `out`, a contiguous tensor with the shape and dtype of `location`, from the file."""
    assert out.is_contiguous()
    assert (tuple(out.shape), out.dtype) == (location.shape, location.dtype)
    if not out.numel():
        return
    target = memoryview(out.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    with open_regular(location.file, buffering=0) as file:
        file.seek(location.start)
        while target:
            n = file.readinto(target)  # type: ignore[attr-defined]  # the stub lacks it
            if not n:
                raise ConfigError(f"{location.file} became shorter while it was read")
            target = target[n:]


def read_tensor(location: TensorLocation) -> Tensor:
    """Read one tensor to the CPU."""
    out = torch.empty(location.shape, dtype=location.dtype)
    read_into(location, out)
    return out


def byte_blocks(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Return the elements as `dtype`, in order, in blocks of rows: only one block is copied at a time."""
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    row_bytes = math.prod(rows.shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    for i in range(0, rows.size(0), step):
        block = rows[i : i + step].to("cpu", dtype).contiguous()
        yield block.reshape(-1).view(torch.uint8).numpy().data


def digest(tensor: Tensor, dtype: torch.dtype) -> str:
    """Return the SHA-256 of the tensor's elements as `dtype`."""
    sha256 = hashlib.sha256()
    for block in byte_blocks(tensor, dtype):
        sha256.update(block)
    return sha256.hexdigest()


def encode_header(specs: Mapping[str, TensorSpec], *, offsets: Mapping[str, Sequence[int]] | None = None) -> bytes:
    """Return the first bytes of a file that holds these tensors one after another, in this order.

    `offsets`: for files that hold parts of tensors, the position of each part in its whole tensor. They are written
    where torch's HuggingFaceStorageReader looks for them (DCP_SHARDING_INFO).
    """
    entries: dict[str, object] = {}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.size_bytes
        entries[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    if offsets is None:
        header = {"__metadata__": {"format": "pt"}, **entries}
    else:
        parts = json.dumps({name: {"saved_offsets": list(offsets[name])} for name in specs})
        header = {**entries, "__metadata__": {"format": "pt", "DCP_SHARDING_INFO": parts}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires that the data start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def encode_file(specs: Mapping[str, TensorSpec], tensors: Iterator[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    """Return the bytes of a file of whole tensors, each converted to the dtype in its spec. Memory: about one tensor.

    Takes `len(specs)` tensors from the iterator, which must have the names and the order of `specs`. A tensor with
    fewer rows than its spec is filled up with zeros.
    """
    yield encode_header(specs, offsets={name: (0,) * len(spec.shape) for name, spec in specs.items()})
    for expected, spec in specs.items():
        name, tensor = next(tensors)
        assert name == expected, f"{name} came where {expected} was expected"
        assert tuple(tensor.shape)[1:] == spec.shape[1:], name
        yield from byte_blocks(tensor, spec.dtype)
        missing = spec.size_bytes - tensor.numel() * spec.dtype.itemsize
        assert missing >= 0, name
        del tensor  # this frame would keep it in memory while the next one is read
        if missing:
            yield bytes(missing)


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the tensors of `shapes`, which come in any order, as `dtype`, under the file names of `transformers`.

    One file, or several files and an index if together they exceed `max_file_bytes`.
    """
    specs = {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
    files = named_files(group_into_files(specs, max_file_bytes))
    file_of = {name: file for file, held in files.items() for name in held}
    starts: dict[str, int] = {}
    written = set()
    with ExitStack() as stack:
        handles = {}
        for file, held in files.items():
            handles[file] = stack.enter_context(open(folder / file, "xb"))
            header = encode_header({name: specs[name] for name in held})
            handles[file].write(header)
            end = len(header)
            for name in held:
                starts[name], end = end, end + specs[name].size_bytes
            handles[file].truncate(end)
        for name, tensor in tensors:
            assert tuple(tensor.shape) == shapes[name], name
            assert name not in written, name
            written.add(name)
            handles[file_of[name]].seek(starts[name])
            for block in byte_blocks(tensor, dtype):
                handles[file_of[name]].write(block)
    assert written == set(shapes), f"not written: {set(shapes) - written}"
    if len(files) > 1:
        total = sum(spec.size_bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def group_into_files(specs: Mapping[str, TensorSpec], max_file_bytes: int) -> list[list[str]]:
    """Divide the tensors into files, in order. A file exceeds `max_file_bytes` only if it holds a single tensor.

    A tensor with wider elements than the one before it starts a file, so that every tensor is aligned to its elements.
    """
    groups: list[list[str]] = [[]]
    used, width = 0, 16
    for name, spec in specs.items():
        if groups[-1] and (used + spec.size_bytes > max_file_bytes or spec.dtype.itemsize > width):
            groups.append([])
            used = 0
        groups[-1].append(name)
        used, width = used + spec.size_bytes, spec.dtype.itemsize
    return groups


def named_files(groups: list[list[str]]) -> dict[str, list[str]]:
    """Return the groups under the file names that `transformers` uses."""
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}
