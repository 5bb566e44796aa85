"""Write torch's distributed checkpoints (DCP: `.metadata`, `.distcp` files) part by part. Memory stays near one part.

DCP's own writer keeps the last part of every tensor until a file is finished, and its planner needs all tensors at
once. DCP reads `.metadata` as a pickle, so we write one; it names only classes of torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.convert.torch_formats.dcp_reader import CLASSES, METADATA, STORAGE_INFO
from gpt.convert.torch_formats.pickle_as_data import GlobalName, PickledDict, PickledObject, encode
from gpt.convert.torch_formats.torch_archive import write_archive, write_tensor
from gpt.files.atomic import sync_file
from gpt.files.safetensors import MAX_FILE_BYTES


@dataclass(frozen=True)
class Part:
    """A box of a tensor. For a layer of a stacked tensor, `tensor` may lack the first dimension of size 1."""

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
    """Write the parts, which fill `shapes`, as `dtype`, and an empty object (`[None]`) for each name in `objects`."""
    chunks: dict[str, list[Any]] = {name: [] for name in shapes}
    positions = PickledDict()
    with ExitStack() as stack:
        number, file = 0, stack.enter_context(open(folder / _file(0), "xb"))
        for name in objects:
            position = _position(number, file.tell(), write_archive(file, encode([None])))
            positions.pairs.append((_index(name, None), position))
        for part in parts:
            if file.tell() and file.tell() + part.tensor.numel() * dtype.itemsize > max_file_bytes:
                sync_file(file)
                number += 1
                file = stack.enter_context(open(folder / _file(number), "xb"))
            sizes = (1,) * (len(part.offsets) - part.tensor.dim()) + tuple(part.tensor.shape)
            position = _position(number, file.tell(), write_tensor(file, part.tensor, sizes, dtype))
            positions.pairs.append((_index(part.name, part.offsets), position))
            chunks[part.name].append(_object("ChunkStorageMetadata", offsets=_size(part.offsets), sizes=_size(sizes)))
            del part  # this frame would keep it in memory while the next one is made
        sync_file(file)
    _write_metadata(folder, chunks, positions, shapes=shapes, dtype=dtype, objects=objects)


def _write_metadata(
    folder: Path,
    chunks: dict[str, list[Any]],
    positions: PickledDict,
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
        storage_data=positions,
        storage_meta=None,
        version="1.0.0",  # of DCP's format
    )
    with open(folder / METADATA, "xb") as file:
        file.write(encode(metadata))
        sync_file(file)


def _file(number: int) -> str:
    return f"__0_{number}.distcp"


def _object(kind: str, **fields: Any) -> PickledObject:
    return PickledObject(kind if "." in kind else CLASSES + kind, (), fields)


def _size(sizes: tuple[int, ...]) -> PickledObject:
    return PickledObject("torch.Size", (tuple(sizes),))


def _index(name: str, offsets: tuple[int, ...] | None) -> PickledObject:
    return _object("MetadataIndex", fqn=name, index=None, **({} if offsets is None else {"offset": _size(offsets)}))


def _position(number: int, start: int, length: int) -> PickledObject:
    return _object(STORAGE_INFO, relative_path=_file(number), offset=start, length=length)


def _properties(dtype: torch.dtype) -> PickledObject:
    layout = PickledObject("torch.serialization._get_layout", ("torch.strided",))
    contiguous = PickledObject(CLASSES + "_MEM_FORMAT_ENCODING", (0,))
    return PickledObject(CLASSES + "TensorProperties", (), (GlobalName(str(dtype)), layout, False, contiguous, False))
