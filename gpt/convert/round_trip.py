"""The one driver of all conversions: write every tensor, read the result back, compare bit for bit."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from gpt.files.safetensors import TensorSpec, digest


class TensorSource(Protocol):
    """Named tensors that stay on disk until they are read, such as a checkpoint of another library."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype by name. The dtype is the one in which tensors are compared after a conversion."""
        ...

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Read the (name, tensor) pairs, one at a time."""
        ...


def round_trip(
    source: TensorSource,
    write: Callable[[Iterator[tuple[str, Tensor]]], object],
    read_back: Callable[[], Iterable[tuple[str, Tensor]]],
    *,
    progress: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Write the tensors of `source`, read them back and compare; return the SHA-256 of each by name.

    `write` consumes the (name, tensor) pairs and may convert them to any format. `read_back` reads what was written and
    returns it under the names of the source. `progress` is called with the name of each tensor written. Memory: one
    tensor, if `write` and `read_back` keep no more. RuntimeError: the result is wrong, so the converter has a bug.
    """
    digests: dict[str, str] = {}
    write(_digested(source, digests, progress))
    assert digests.keys() == source.specs.keys(), "the writer did not consume all tensors"
    compare(source.specs, digests, read_back())
    return digests


def compare(specs: Mapping[str, TensorSpec], digests: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Check that exactly these tensors come, in any order, with these digests in the dtypes of `specs`.

    RuntimeError: one is missing, unknown or different.
    """
    missing = set(digests)
    for name, tensor in tensors:
        if name not in missing or digest(tensor, specs[name].dtype) != digests[name]:
            raise RuntimeError(f"the tensor '{name}' did not come back bit for bit as it was written")
        missing.remove(name)
        del tensor  # this frame would keep it in memory while the next one is read
    if missing:
        raise RuntimeError(f"{len(missing)} tensors did not come back, among them '{min(missing)}'")


def main_dtype(source: TensorSource) -> torch.dtype:
    """Return the dtype of most bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for spec in source.specs.values():
        sizes[spec.dtype] += spec.size_bytes
    return sizes.most_common(1)[0][0]


def _digested(
    source: TensorSource, digests: dict[str, str], progress: Callable[[str], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Hand on the tensors and note their digests in passing."""
    specs = source.specs
    for name, tensor in source.read():
        digests[name] = digest(tensor, specs[name].dtype)
        yield name, tensor
        del tensor  # this frame would keep it in memory while the next one is read
        if progress is not None:
            progress(name)
