"""Writes torch's distributed checkpoints (DCP: `.metadata`, `.distcp` files) part by part; memory stays near one part.

DCP's own writer keeps the last part of every tensor until a file is done, and its planner wants all tensors at once.
What is written is for DCP to read, so `.metadata` is a pickle; it is put together here, of names of torch alone.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.convert.torch_formats.dcp_reader import CLASSES, METADATA, STORAGE_INFO
from gpt.convert.torch_formats.pickle_as_data import Made, Name, Table, encode
from gpt.convert.torch_formats.torch_archive import write_archive, write_tensor
from gpt.files.safetensors import MAX_FILE_BYTES


@dataclass(frozen=True)
class Part:
    """A box of a tensor: of a stacked one, a layer, whose tensor then has no first dimension of 1."""

    name: str
    offsets: tuple[int, ...]
    tensor: Tensor


def write_torch_dist(
    folder: Path,
    parts: Iterable[Part],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    objects: Sequence[str] = (),
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the parts, which fill `shapes`, all as `dtype`, and nothing (`[None]`) under each name of `objects`."""
    chunks: dict[str, list[Any]] = {name: [] for name in shapes}
    places = Table()
    with ExitStack() as stack:
        number, file = 0, stack.enter_context(open(folder / _file(0), "xb"))
        for name in objects:
            place = _place(number, file.tell(), write_archive(file, encode([None])))
            places.pairs.append((_index(name, None), place))
        for part in parts:
            if file.tell() and file.tell() + part.tensor.numel() * dtype.itemsize > max_file_bytes:
                _sync(file)
                number += 1
                file = stack.enter_context(open(folder / _file(number), "xb"))
            sizes = (1,) * (len(part.offsets) - part.tensor.dim()) + tuple(part.tensor.shape)
            place = _place(number, file.tell(), write_tensor(file, part.tensor, sizes, dtype))
            places.pairs.append((_index(part.name, part.offsets), place))
            chunks[part.name].append(_object("ChunkStorageMetadata", offsets=_size(part.offsets), sizes=_size(sizes)))
            del part  # or the next one would be made while this one is still held
        _sync(file)
    _write_metadata(folder, chunks, places, shapes=shapes, dtype=dtype, objects=objects)


def _write_metadata(
    folder: Path,
    chunks: dict[str, list[Any]],
    places: Table,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    objects: Sequence[str],
) -> None:
    described: dict[str, Any] = {name: _object("BytesStorageMetadata") for name in objects}
    for name, shape in shapes.items():
        described[name] = _object(
            "TensorStorageMetadata", properties=_properties(dtype), size=_size(shape), chunks=chunks[name]
        )
    metadata = _object(
        "Metadata",
        state_dict_metadata=described,
        planner_data=None,
        storage_data=places,
        storage_meta=None,
        version="1.0.0",  # of DCP's format
    )
    with open(folder / METADATA, "xb") as file:
        file.write(encode(metadata))
        _sync(file)


def _file(number: int) -> str:
    return f"__0_{number}.distcp"


def _object(kind: str, **fields: Any) -> Made:
    return Made(kind if "." in kind else CLASSES + kind, (), fields)


def _size(sizes: tuple[int, ...]) -> Made:
    return Made("torch.Size", (tuple(sizes),))


def _index(name: str, offsets: tuple[int, ...] | None) -> Made:
    return _object("MetadataIndex", fqn=name, index=None, **({} if offsets is None else {"offset": _size(offsets)}))


def _place(number: int, start: int, length: int) -> Made:
    return _object(STORAGE_INFO, relative_path=_file(number), offset=start, length=length)


def _properties(dtype: torch.dtype) -> Made:
    layout = Made("torch.serialization._get_layout", ("torch.strided",))
    contiguous = Made(CLASSES + "_MEM_FORMAT_ENCODING", (0,))
    return Made(CLASSES + "TensorProperties", (), (Name(str(dtype)), layout, False, contiguous, False))


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
