"""The driver of all conversions finds a tensor that is changed, lost, unknown or never written."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gpt.convert.round_trip import main_dtype, round_trip
from gpt.files.safetensors import TensorSpec, digest

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Memory:
    """A source of the tensors above."""

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        yield from TENSORS.items()


def test_a_conversion_that_changes_nothing_gives_the_digests() -> None:
    """In the dtype of the source, though the copy is kept in fp32."""
    written: dict[str, Tensor] = {}
    done: list[str] = []
    digests = round_trip(
        Memory(),
        lambda tensors: written.update((name, tensor.float()) for name, tensor in tensors),
        lambda: reversed(written.items()),
        progress=done.append,
    )
    assert digests == {name: digest(tensor, tensor.dtype) for name, tensor in TENSORS.items()}
    assert done == ["a", "b"]
    assert main_dtype(Memory()) == torch.float32


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda written: written.update(a=written["a"].index_put((torch.tensor(1),), -written["a"][1])), "'a' did not"),
        (lambda written: written.update(a=written["a"] + torch.finfo().eps), "'a' did not come back bit for bit"),
        (lambda written: written.pop("b"), "1 tensors did not come back, among them 'b'"),
        (lambda written: written.update(c=torch.zeros(1)), "'c' did not come back"),
    ],
)
def test_a_conversion_that_changes_a_tensor_is_found(spoil: Callable[[dict[str, Tensor]], None], words: str) -> None:
    written: dict[str, Tensor] = {}

    def write(tensors: Iterator[tuple[str, Tensor]]) -> None:
        written.update(tensors)
        spoil(written)

    with pytest.raises(RuntimeError, match=words):
        round_trip(Memory(), write, lambda: written.items())


def test_a_writer_that_stops_early_is_found() -> None:
    with pytest.raises(AssertionError, match="did not consume all tensors"):
        round_trip(Memory(), next, dict)


def test_a_tensor_that_comes_back_twice_is_found() -> None:
    with pytest.raises(RuntimeError, match="'a' did not come back"):
        round_trip(Memory(), list, lambda: [*TENSORS.items(), ("a", TENSORS["a"])])
