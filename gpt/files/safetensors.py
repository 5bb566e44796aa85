"""Reads and writes safetensors files a tensor at a time, in any order; memory stays near one tensor.

The library's own reader maps a file, so that all that was ever read of it counts as this process's memory, and its
writer wants all tensors of a file at once. The format (8 bytes of header length, a JSON header of dtype, shape and
place, then the bytes) lets both be done with plain reads and writes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError

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
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` is its first byte in `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name. ConfigError: it is no whole safetensors file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise ConfigError(f"{path}: no whole safetensors file: its {size} bytes do not hold its header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _place(path, entry, start=8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: no safetensors file ({error!r})") from None
    for name, stored in found.items():
        if stored.start + stored.size_bytes > size:
            raise ConfigError(f"{path}: cut off: it has {size} bytes, and the tensor '{name}' ends beyond them")
    return found


def _place(path: Path, entry: dict[str, Any], *, start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    stored = StoredTensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin)
    counts = (begin, end, *stored.shape)
    if any(type(n) is not int or n < 0 for n in counts) or end - begin != stored.size_bytes:
        raise ValueError(f"the entry {entry} contradicts itself")
    return stored


def read_into(stored: StoredTensor, out: Tensor) -> None:
    """Fill `out`, contiguous and of the stored shape and dtype, from its file."""
    assert out.is_contiguous()
    assert (tuple(out.shape), out.dtype) == (stored.shape, stored.dtype)
    if not out.numel():
        return
    target = memoryview(out.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    with open(stored.file, "rb", buffering=0) as file:
        file.seek(stored.start)
        while target:
            n = file.readinto(target)
            if not n:
                raise ConfigError(f"{stored.file} became shorter while it was read")
            target = target[n:]


def read_tensor(stored: StoredTensor) -> Tensor:
    """One tensor on the CPU."""
    out = torch.empty(stored.shape, dtype=stored.dtype)
    read_into(stored, out)
    return out


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's model.safetensors, or of the files that its index names.

    ConfigError: neither is there (a pickle is never read), or a file or a tensor that the index promises is missing.
    """
    index = folder / INDEX
    promised: Mapping[str, str] = {}
    files = [SINGLE]
    if index.exists():
        try:
            promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(promised.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index}: no index of safetensors files ({error!r})") from None
        for file in files:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ConfigError(f"{index} names {file!r}, which is no safetensors file beside it")
    elif not (folder / SINGLE).exists():
        raise ConfigError(_no_weights(folder))
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ConfigError(f"{folder / file} is missing; {INDEX} names it")
        for name, stored in read_header(folder / file).items():
            if name in found:
                raise ConfigError(f"{folder}: '{name}' is in {found[name].file.name} and in {file}")
            found[name] = stored
    for name, file in promised.items():
        if name not in found:
            raise ConfigError(f"{index} promises '{name}' in {file}, which does not hold it")
    return found


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
    if not pickles:
        return f"{folder} holds neither {SINGLE} nor {INDEX}: no weights"
    return (
        f"{folder} holds weights only as {pickles[0]}, a pickle, which can run code and is never loaded; get the "
        f"model's .safetensors files, or write them in a place that you trust: python -c \"from transformers import "
        f"AutoModelForCausalLM as A; A.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
    )


def read_model(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder, one at a time."""
    for name, stored in read_folder(folder).items():
        yield name, read_tensor(stored)


def byte_blocks(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The tensor's elements as `dtype`, in order, a block of rows at a time: a copy is a block and never the whole."""
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    row_bytes = math.prod(rows.shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    for i in range(0, rows.size(0), step):
        block = rows[i : i + step].to("cpu", dtype).contiguous()
        yield block.reshape(-1).view(torch.uint8).numpy().data


def digest(tensor: Tensor, dtype: torch.dtype) -> str:
    """SHA-256 of the tensor's elements as `dtype`."""
    sha256 = hashlib.sha256()
    for block in byte_blocks(tensor, dtype):
        sha256.update(block)
    return sha256.hexdigest()


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write exactly the tensors that `shapes` names, all as `dtype`, under the file names that `transformers` reads.

    One file, or several and an index when together they exceed `max_file_bytes`.
    """
    files = named_files(spread(shapes, dtype, max_file_bytes))
    names = {name: file for file, held in files.items() for name in held}
    places = {file: _Layout(held, shapes, dtype) for file, held in files.items()}
    written = set()
    with ExitStack() as stack:
        handles = {}
        for file, layout in places.items():
            handles[file] = stack.enter_context(open(folder / file, "xb"))
            handles[file].write(layout.header)
            handles[file].truncate(len(layout.header) + layout.data_bytes)
        for name, tensor in tensors:
            assert tuple(tensor.shape) == shapes[name], name
            assert name not in written, name
            written.add(name)
            handles[names[name]].seek(places[names[name]].starts[name])
            for block in byte_blocks(tensor, dtype):
                handles[names[name]].write(block)
    assert written == set(shapes), f"not written: {set(shapes) - written}"
    if len(files) > 1:
        total = sum(layout.data_bytes for layout in places.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


class _Layout:
    """Where each tensor of one file lies: `header` are the file's first bytes, `starts` positions in the file."""

    def __init__(self, names: list[str], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets, end = {}, 0
        for name in names:
            offsets[name], end = end, end + math.prod(shapes[name]) * dtype.itemsize
            place = [offsets[name], end]
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shapes[name]), "data_offsets": place}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        self.header = len(text).to_bytes(8, "little") + text
        self.starts = {name: len(self.header) + offset for name, offset in offsets.items()}
        self.data_bytes = end


def spread(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_file_bytes: int) -> list[list[str]]:
    """Which tensors share a file, in the order of `shapes`."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def named_files(groups: list[list[str]]) -> dict[str, list[str]]:
    """The groups under the file names that `transformers` gives them."""
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}
