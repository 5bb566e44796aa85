"""torch reads the distributed checkpoints that are written here, and so do we."""

import io

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata

from gpt.convert.torch_formats.dcp_reader import find_slices, read_metadata, read_slice
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


STACKED, PLAIN = random(3, 4, 5), random(7, 2)


def parts():
    for layer in (2, 0, 1):
        yield Part("stacked", (layer, 0, 0), STACKED[layer])
    yield Part("plain", (0, 0), PLAIN)


def write(folder, dtype=torch.float32, **settings):
    folder.mkdir(exist_ok=True)
    shapes = {"stacked": (3, 4, 5), "plain": (7, 2)}
    write_torch_dist(folder, parts(), shapes=shapes, dtype=dtype, objects=["x._extra_state/shard_0_1"], **settings)
    return folder


def read(folder, name, layers=None):
    return [read_slice(found) for found in find_slices(folder, name, read_metadata(folder)[name], layers)]


def loaded(path, start, length):
    return torch.load(io.BytesIO(path.read_bytes()[start : start + length]), weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_and_we_read_what_is_written(tmp_path, dtype):
    folder = write(tmp_path / "x", dtype, max_file_bytes=700)
    assert len(list(folder.glob("*.distcp"))) > 1
    state = {"stacked": torch.zeros(3, 4, 5), "plain": torch.zeros(7, 2, dtype=dtype)}
    dcp.load(state, checkpoint_id=str(folder))
    assert torch.equal(state["stacked"], STACKED.to(dtype).float())
    assert torch.equal(state["plain"], PLAIN.to(dtype))
    described = dcp.FileSystemReader(str(folder)).read_metadata()
    position = described.storage_data[metadata.MetadataIndex("x._extra_state/shard_0_1")]
    assert loaded(folder / position.relative_path, position.offset, position.length) == [None]
    for layer, tensor in zip((2, 0), read(folder, "stacked", [2, 0]), strict=True):
        assert torch.equal(tensor, STACKED[layer].to(dtype))
    assert torch.equal(read(folder, "plain")[0], PLAIN.to(dtype))


def test_parts_that_are_not_contiguous_in_the_whole_are_put_together(tmp_path):
    shapes = {"x": (3, 4, 5)}
    boxes = [(i, j, k) for i in range(3) for j in (0, 2) for k in (0, 3)]
    cut = (Part("x", (i, j, k), STACKED[i, j : j + 2, k : k + (3 if k == 0 else 2)]) for i, j, k in boxes)
    write_torch_dist(tmp_path, cut, shapes=shapes, dtype=torch.float32)
    assert torch.equal(read(tmp_path, "x")[0], STACKED)
    assert torch.equal(read(tmp_path, "x", [1])[0], STACKED[1])
