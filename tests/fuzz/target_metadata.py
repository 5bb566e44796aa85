"""The `.metadata` of torch's distributed checkpoints, with changed values that only a crafted file has."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzzing import Target
from mutations import HOSTILE, mutate
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata

from gpt.convert.torch_formats.dcp_reader import find_slices, read_metadata, read_slice
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist

SHAPES = {"stacked": (3, 4, 5), "plain": (7, 2), "halves": (8, 2)}
NUMBERS = (-1, 0, 1, 2, 3, 5, 7, 8, 64, 10**6, 2**31, 2**62, 2**63, 2**64, 10**100)


def parts() -> Iterator[Part]:
    for layer in range(3):
        yield Part("stacked", (layer, 0, 0), torch.randn(4, 5))
    yield Part("plain", (0, 0), torch.randn(7, 2))
    yield Part("halves", (4, 0), torch.randn(4, 2))
    yield Part("halves", (0, 0), torch.randn(4, 2))


def write(folder: Path) -> None:
    write_torch_dist(folder, parts(), shapes=SHAPES, dtype=torch.float32, objects=[])
    described = dcp.FileSystemReader(str(folder)).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(described))


def damage(folder: Path, rng: Random) -> list[str]:
    """Change one to three values, or bytes."""
    if rng.random() < 0.2:
        return mutate(folder, rng)
    described = pickle.loads((folder / ".metadata").read_bytes())
    changes = [change(described, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    return changes


def change(described: Any, rng: Random) -> str:
    name = rng.choice(sorted(map(str, described.state_dict_metadata)))
    tensor = described.state_dict_metadata.get(name)
    index = rng.choice(list(described.storage_data))
    info, kind = described.storage_data[index], rng.choice(range(10))
    number, hostile = rng.choice(NUMBERS), rng.choice(HOSTILE)
    tensor = tensor if isinstance(tensor, metadata.TensorStorageMetadata) else None
    chunk = rng.choice(tensor.chunks) if tensor is not None and isinstance(tensor.chunks, list) else None
    chunk = chunk if isinstance(chunk, metadata.ChunkStorageMetadata) else None
    if kind == 0 and chunk is not None:
        object.__setattr__(chunk, rng.choice(("offsets", "sizes")), sizes((2, 2), number, rng))
    elif kind == 1 and chunk is not None:
        object.__setattr__(chunk, rng.choice(("offsets", "sizes")), hostile)
    elif kind == 2 and chunk is not None:
        tensor.chunks *= rng.choice((2, 1000))
    elif kind == 3 and tensor is not None:
        tensor.size = sizes(SHAPES.get(name, (1,)), number, rng)
    elif kind == 4 and tensor is not None:
        setattr(tensor, rng.choice(("size", "chunks", "properties")), hostile)
    elif kind == 5:
        described.storage_data[index] = type(info)(info.relative_path, number, rng.choice((info.length, number)))
    elif kind == 6:
        object.__setattr__(info, rng.choice(("relative_path", "offset", "length")), hostile)
    elif kind == 7:
        new = metadata.MetadataIndex(rng.choice((name, "x" * 10**6)), sizes((0, 0), number, rng))
        described.storage_data[new] = info
    elif kind == 8:
        described.state_dict_metadata[rng.choice(("other", "a\nb", "x" * 10**6))] = rng.choice((tensor, hostile))
    else:
        setattr(described, rng.choice(("state_dict_metadata", "storage_data", "planner_data")), hostile)
        described.state_dict_metadata = described.state_dict_metadata or {name: tensor}
        described.storage_data = described.storage_data or {index: info}
        if not isinstance(described.state_dict_metadata, dict) or not isinstance(described.storage_data, dict):
            described.state_dict_metadata, described.storage_data = {name: tensor}, {index: info}
    return f"{name}: {kind}, {number}, {hostile!r:.80}"


def sizes(old: Any, number: int, rng: Random) -> tuple[int, ...]:
    new = [n for n in old if isinstance(n, int)] or [1]
    new[rng.randrange(len(new))] = number
    return tuple(new) if rng.random() < 0.8 else (*new, 1)


def read(folder: Path) -> None:
    """As the conversion of a checkpoint does, whatever tensors it holds."""
    for name, saved in read_metadata(folder).items():
        if len(saved.shape) == len(SHAPES.get(name, ())):
            layers = range(3) if name == "stacked" else None
            for found in find_slices(folder, name, saved, layers):
                if found.size_bytes < 1 << 20:
                    read_slice(found)


TARGETS = (Target("dcp_metadata", write, read, cases=100, damage=damage),)
