"""Read and write the zip archive that `torch.save` makes of one tensor, with plain reads and writes.

The pickle in the archive is decoded as data and never loaded.
"""

import math
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gpt.convert.torch_formats.pickle_as_data import GlobalName, PersistentId, PickledObject, decode, described, encode
from gpt.errors import ConfigError
from gpt.files.regular import open_regular
from gpt.files.safetensors import TensorLocation, byte_blocks

_REBUILD = "torch._utils._rebuild_tensor_v2"
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
}
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}
_MAX_PICKLE_BYTES = 1 << 24  # Megatron's common.pt has some kilobytes
_MAX_TENSOR_PICKLE_BYTES = 1 << 16  # a tensor's pickle has a few hundred
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member, up to the lengths of its name and extra field


@dataclass(frozen=True)
class Archive:
    """The contents of an archive. `members`: position of the first byte in `file`, length and CRC-32, by name."""

    file: Path
    pickle: bytes
    members: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class FoundTensor:
    """A tensor found in an archive. `crc`: CRC-32 of its elements; None if torch.save wrote none, or for a part."""

    stored: TensorLocation
    crc: int | None


class Window(RawIOBase):
    """A part of an open file, from `start` on, as a file of its own. Closing it leaves the open file open.

    With a `length` it is readable, without one writable.
    """

    def __init__(self, file: BinaryIO, start: int, length: int | None = None) -> None:
        self.file, self.start, self.length = file, start, length
        self.position = 0

    def readable(self) -> bool:
        return self.length is not None

    def writable(self) -> bool:
        return self.length is None

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        end = self.length if self.length is not None else self.file.seek(0, SEEK_END) - self.start
        self.position = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: end}[whence] + offset
        if self.position < 0:
            raise ValueError("a position before the start")
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        assert self.length is not None
        left = max(self.length - self.position, 0)
        self.file.seek(self.start + self.position)
        data = self.file.read(left if size is None or size < 0 else min(size, left))
        self.position += len(data)
        return data

    def write(self, data: Any) -> int:
        self.file.seek(self.start + self.position)
        n = self.file.write(data)
        self.position += n
        return n


def read_archive(path: Path, *, start: int = 0, length: int | None = None, what: str = "") -> Archive:
    """Read the directory and the pickle of the archive at `start`. ConfigError: there is no complete archive."""
    where = f"{path}{what and f' ({what})'}"
    try:
        with open_regular(path) as file:
            size = file.seek(0, SEEK_END)
            length = size - start if length is None else length
            if start < 0 or length < 0 or start + length > size:
                raise ConfigError(f"{where} is cut off: it has {size} bytes, but should have {start + length}")
            with zipfile.ZipFile(Window(file, start, length)) as archive:  # type: ignore[arg-type]
                members = {}
                for info in archive.infolist():
                    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                        raise ConfigError(
                            f"{where}: {info.filename[:100]!r} is compressed, which torch.save never does"
                        )
                    if info.header_offset < 0:
                        raise ValueError("a member before the start")
                    begin = start + info.header_offset + _header_bytes(file, start + info.header_offset)
                    if begin + info.file_size > start + length:
                        raise ConfigError(f"{where}: {info.filename[:100]!r} ends beyond the archive")
                    members[info.filename.partition("/")[2]] = (begin, info.file_size, info.CRC)
            return Archive(path, _read_pickle(file, members, where), members)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, KeyError, struct.error, OverflowError) as error:
        raise ConfigError(f"{where} is not an archive of torch.save ({str(error)[:200]})") from None


def _header_bytes(file: BinaryIO, position: int) -> int:
    if position < 0:
        raise ValueError("a member before the start")
    file.seek(position)
    magic, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != b"PK\x03\x04":
        raise ValueError("a member is not where the directory says")
    return int(_LOCAL_HEADER.size + name + extra)


def _read_pickle(file: BinaryIO, members: dict[str, tuple[int, int, int]], where: str) -> bytes:
    if "data.pkl" not in members:
        raise ConfigError(f"{where} is not an archive of torch.save: it has no data.pkl")
    begin, size, _ = members["data.pkl"]
    if size > _MAX_PICKLE_BYTES:
        raise ConfigError(f"{where}: a pickle of {size} bytes is too large")
    if "byteorder" in members:
        position, length, _ = members["byteorder"]
        file.seek(position)
        if file.read(min(length, 16)) != b"little":
            raise ConfigError(f"{where} was written on a big-endian machine, which is not supported")
    file.seek(begin)
    return file.read(size)


def find_tensor(path: Path, *, start: int = 0, length: int | None = None, what: str = "") -> FoundTensor:
    """Find the elements of the tensor in an archive. ConfigError: it holds something else, or elements are missing."""
    archive = read_archive(path, start=start, length=length, what=what)
    where = f"{path}{what and f' ({what})'}"
    if len(archive.pickle) > _MAX_TENSOR_PICKLE_BYTES:
        raise ConfigError(f"{where}: a pickle of {len(archive.pickle)} bytes is too large for a tensor")
    decoded = decode(archive.pickle, where=where)
    known = {_REBUILD, "collections.OrderedDict", *STORAGES}
    for name in decoded.names:
        if name not in known:
            raise ConfigError(f"{where}: its pickle names {name[:100]!r}, which no weight needs; it was not run")
    root = decoded.root
    if not isinstance(root, PickledObject) or root.of != _REBUILD or len(root.arguments) < 4:
        raise ConfigError(f"{where}: expected a tensor, found {described(root)}")
    storage, offset, shape, strides = root.arguments[:4]
    dtype, key, count = _storage(storage, where)
    counts = [offset, *_integers(shape, where), *_integers(strides, where)]
    if any(type(n) is not int or n < 0 for n in counts):
        raise ConfigError(f"{where}: the tensor has invalid sizes")
    if len(shape) != len(strides) or not _contiguous(shape, strides):
        raise ConfigError(f"{where}: the tensor is not contiguous, which is not supported")
    begin, size, crc = archive.members.get(f"data/{key}", (0, -1, 0))
    needed = (offset + math.prod(shape)) * dtype.itemsize
    if size < needed or count * dtype.itemsize > size:
        raise ConfigError(f"{where}: its tensor needs {needed} bytes, but has {max(size, 0)}")
    stored = TensorLocation(path, dtype, tuple(shape), begin + offset * dtype.itemsize)
    return FoundTensor(stored, crc if crc and stored.size_bytes == size else None)


def _storage(node: Any, where: str) -> tuple[torch.dtype, str, int]:
    identity = node.identity if isinstance(node, PersistentId) else None
    match identity:
        case ("storage", GlobalName(path=kind), str(key), str(), int(count)) if kind in STORAGES and count >= 0:
            return STORAGES[kind], key, count
    known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _STORAGE_NAMES)
    raise ConfigError(f"{where}: the dtype of the tensor is not supported; {known} are")


def _integers(node: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(node, tuple) or len(node) > 16:
        raise ConfigError(f"{where}: expected the sizes of a tensor, found {described(node)}")
    return node


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return math.prod(shape) == 0
        expected *= size
    return True


def tensor_pickle(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """Return the pickle of a contiguous tensor whose elements are the member data/0."""
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    storage = PersistentId(("storage", GlobalName(_STORAGE_NAMES[dtype]), "0", "cpu", math.prod(shape)))
    hooks = PickledObject("collections.OrderedDict", ())
    return encode(PickledObject(_REBUILD, (storage, 0, shape, strides, False, hooks)))


def write_archive(file: BinaryIO, pickle: bytes, elements: Iterable[memoryview] | None = None, size: int = 0) -> int:
    """Append an archive to the file, block by block; return its length. `size`: of the elements, in bytes."""
    start = file.seek(0, SEEK_END)
    with zipfile.ZipFile(Window(file, start), "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]
        archive.writestr(_member("data.pkl"), pickle)
        archive.writestr(_member("byteorder"), b"little")
        if elements is not None:
            info = _member("data/0")
            info.file_size = size  # otherwise zipfile fails in the middle of a member of more than 2 GiB
            with archive.open(info, "w", force_zip64=size >= 2**31) as out:
                for block in elements:
                    out.write(block)
        archive.writestr(_member("version"), b"3\n")
    return file.seek(0, SEEK_END) - start


def write_tensor(file: BinaryIO, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Append the archive of a tensor, as `dtype` and with this shape; return its length. Memory: one block."""
    size = math.prod(shape) * dtype.itemsize
    assert size == tensor.numel() * dtype.itemsize
    return write_archive(file, tensor_pickle(shape, dtype), byte_blocks(tensor, dtype), size=size)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
