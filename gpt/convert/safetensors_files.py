"""Writes safetensors files a tensor at a time, in any order, and reads them back; memory stays near one tensor.

The library's own writer wants all tensors of a file at once. The format (8 bytes of header length, a JSON header of
dtype, shape and place, then the bytes) lets a file be laid out before its first tensor is there.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INDEX = "model.safetensors.index.json"


def write_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Write exactly the tensors that `shapes` names, all as `dtype`, under the file names that `transformers` reads.

    One file, or several and an index when together they exceed `max_file_bytes`.
    """
    files = _spread(shapes, dtype, max_file_bytes)
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
            data = tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
            handles[names[name]].seek(places[names[name]].starts[name])
            handles[names[name]].write(data.data)
    assert written == set(shapes), f"not written: {set(shapes) - written}"
    if len(files) > 1:
        total = sum(layout.data_bytes for layout in places.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_model(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's model.safetensors, or of the files that its index names, one at a time."""
    index = folder / _INDEX
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for file in files:
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  no dictionary
                yield name, opened.get_tensor(name)


class _Layout:
    """Where each tensor of one file lies: `header` are the file's first bytes, `starts` positions in the file."""

    def __init__(self, names: list[str], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets, end = {}, 0
        for name in names:
            offsets[name], end = end, end + math.prod(shapes[name]) * dtype.itemsize
            place = [offsets[name], end]
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shapes[name]), "data_offsets": place}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        self.header = len(text).to_bytes(8, "little") + text
        self.starts = {name: len(self.header) + offset for name, offset in offsets.items()}
        self.data_bytes = end


def _spread(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_file_bytes: int) -> dict[str, list[str]]:
    """Which tensors go into which file, in the order of `shapes`."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}
