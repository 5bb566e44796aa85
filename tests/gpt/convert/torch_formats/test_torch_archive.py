"""The archive of torch.save with one tensor: torch reads what is written here, and damage is refused."""

import contextlib
import io
import os
import random as random_numbers

import pytest
import torch

from gpt.convert.torch_formats.torch_archive import find_tensor, write_tensor
from gpt.errors import ConfigError
from gpt.files.safetensors import read_tensor


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


PLAIN = random(7, 2)


def loaded(path, start, length):
    return torch.load(io.BytesIO(path.read_bytes()[start : start + length]), weights_only=True)


@pytest.mark.parametrize("tensor", [random(3, 4).T, random(9)[2:5], random(2, 3), torch.ones(()), torch.ones(0, 3)])
def test_one_tensor_in_one_archive(tmp_path, tensor):
    """In both directions. A tensor that torch saves with strides is refused."""
    with open(tmp_path / "x", "xb") as file:
        file.write(b"before")
        length = write_tensor(file, tensor.contiguous(), tuple(tensor.shape), torch.bfloat16)
    assert torch.equal(loaded(tmp_path / "x", 6, length), tensor.bfloat16())
    torch.save(tensor, tmp_path / "y")
    if tensor.is_contiguous():
        found = find_tensor(tmp_path / "y").stored
        read = bytearray((tmp_path / "y").read_bytes()[found.start : found.start + found.size_bytes])
        assert read == bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        assert (found.shape, found.dtype) == (tuple(tensor.shape), torch.float32)
    else:
        with pytest.raises(ConfigError, match="is not contiguous"):
            find_tensor(tmp_path / "y")


def test_an_archive_with_any_bytes_changed_is_read_or_refused(tmp_path):
    """In the last 600 bytes, which contain the zip directory."""
    path, chance = tmp_path / "x", random_numbers.Random(5)
    torch.save(PLAIN, path)
    good = path.read_bytes()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.choice([1, 2, 4])):
            data[chance.randrange(-600, 0)] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            find_tensor(path)


def test_an_archive_after_four_gib_of_a_file_is_found(tmp_path):
    """Positions in the zip count from its own start. The file is sparse."""
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 2**32 + 100)
    with open(path, "r+b") as file:
        length = write_tensor(file, PLAIN, (7, 2), torch.float32)
    found = find_tensor(path, start=2**32 + 100, length=length)
    assert torch.equal(read_tensor(found.stored), PLAIN)
