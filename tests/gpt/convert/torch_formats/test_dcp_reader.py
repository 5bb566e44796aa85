"""Distributed checkpoints of torch are read as data; damage and hostile files are refused, and nothing is run."""

import os
import pickle
import random as random_numbers
import struct
import tracemalloc
import zipfile

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from gpt.convert.torch_formats.dcp_reader import find_slices, read_metadata, read_slice
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist
from gpt.convert.torch_formats.pickle_as_data import GlobalName, PersistentId, PickledObject, encode
from gpt.convert.torch_formats.torch_archive import Window
from gpt.errors import ConfigError

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


def test_checkpoints_of_torch_are_read(tmp_path):
    """Also a stacked tensor in one piece and a view into a larger storage. Objects that are not tensors are skipped."""
    state = {
        "stacked": STACKED,
        "plain": PLAIN.half(),
        "part": STACKED[1],
        "step": 3,
        "nested": {"scalar": torch.ones(())},
    }
    dcp.save(state, checkpoint_id=str(tmp_path))
    assert set(read_metadata(tmp_path)) == {"stacked", "plain", "part", "nested.scalar"}
    assert all(torch.equal(found, STACKED[i]) for i, found in enumerate(read(tmp_path, "stacked", range(3))))
    assert torch.equal(read(tmp_path, "plain")[0], PLAIN.half())
    assert torch.equal(read(tmp_path, "part")[0], STACKED[1])
    assert read(tmp_path, "nested.scalar")[0] == 1


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def change_metadata(folder, change):
    described = dcp.FileSystemReader(str(folder)).read_metadata()
    change(described)
    (folder / ".metadata").write_bytes(pickle.dumps(described))


def index(offset=(0, 0)):
    return metadata.MetadataIndex("plain", offset)


def info(**fields):
    return filesystem._StorageInfo(**{"relative_path": "__0_0.distcp", "offset": 0, "length": 9, **fields})


def set_position(folder, **fields):
    change_metadata(folder, lambda m: m.storage_data.update({index(): info(**fields)}))


def add_overlap(described):
    found = described.state_dict_metadata["plain"]
    half = torch.Size([3, 2])
    found.chunks = [metadata.ChunkStorageMetadata(torch.Size([i, 0]), half) for i in (0, 1)]
    described.storage_data.update({index((1, 0)): described.storage_data[index()]})


def repeat_rows(described):
    """Describe twice as many rows as stored, with the second half in the same bytes as the first."""
    found, size = described.state_dict_metadata["plain"], torch.Size([7, 2])
    found.size = torch.Size([14, 2])
    found.chunks = [metadata.ChunkStorageMetadata(torch.Size([i, 0]), size) for i in (0, 7)]
    described.storage_data.update({index((7, 0)): described.storage_data[index()]})


def set_name(described, name):
    described.state_dict_metadata[name] = described.state_dict_metadata.pop("stacked")


def tensor_of(shape, strides):
    """Return the pickle of a tensor with any sizes and strides, which torch would not write."""
    storage = PersistentId(("storage", GlobalName("torch.FloatStorage"), "0", "cpu", 14))
    return encode(PickledObject("torch._utils._rebuild_tensor_v2", (storage, 0, shape, strides, False, None)))


def rewrite_archive(folder, *, compress=False, data=None, byteorder=b"little", keep=1):
    """Append an archive of 'plain' to the file that is wrong in one point, and describe that one."""
    path = folder / "__0_0.distcp"
    start = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(Window(file, start), "w", method) as archive:
            good = b"".join(struct.pack("<f", value) for value in PLAIN.flatten().tolist())
            archive.writestr("archive/data.pkl", data or tensor_pickle(folder))
            archive.writestr("archive/byteorder", byteorder)
            archive.writestr("archive/data/0", good[: len(good) * keep])
        length = file.seek(0, os.SEEK_END) - start
    set_position(folder, offset=start, length=length)


def tensor_pickle(folder):
    torch.save(PLAIN, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as archive:
        return archive.read("plain/data.pkl")


BAD = [
    (lambda f, _: (f / ".metadata").unlink(), "holds no .metadata"),
    (lambda f, _: (f / ".metadata").write_bytes(b"nonsense"), "not a complete pickle"),
    (lambda f, _: (f / ".metadata").write_bytes((f / ".metadata").read_bytes()[:-20]), "not a complete pickle"),
    (lambda f, c: (f / ".metadata").write_bytes(pickle.dumps(Evil(c))), "names 'posix.system', which no metadata"),
    (lambda f, c: change_metadata(f, lambda m: setattr(m, "planner_data", Evil(c))), "names 'posix.system'"),
    (lambda f, c: change_metadata(f, lambda m: m.state_dict_metadata.update(x=Evil(c))), "names 'posix.system'"),
    (
        lambda f, _: change_metadata(f, lambda m: m.state_dict_metadata.update({"a\nb": None})),
        r"'a.*nb' of 3 characters is not a valid tensor name",
    ),
    (lambda f, _: (f / ".metadata").write_bytes(pickle.dumps({"a": 1})), "expected a .*Metadata, found a dict"),
    (
        lambda f, _: change_metadata(f, lambda m: m.storage_data.clear()),
        r"the position of the part of '\w+' at .* is missing",
    ),
    (
        lambda f, _: change_metadata(f, lambda m: m.storage_data.update({index(): "here"})),
        "expected a .*_StorageInfo, found a str",
    ),
    (lambda f, _: set_position(f, relative_path="../secret"), "which is not a file in the same folder"),
    (lambda f, _: set_position(f, relative_path="/etc/passwd"), "which is not a file in the same folder"),
    (lambda f, _: set_position(f, relative_path="gone.distcp"), "gone.distcp is missing"),
    (lambda f, _: set_position(f, offset=-4), "the position -4, of 9 bytes, is invalid"),
    (lambda f, _: set_position(f, length=10**9), "two parts of tensors overlap in __0_0.distcp"),
    (lambda f, _: set_position(f, length=100), "is not an archive of torch.save"),
    (lambda f, _: set_position(f, transform_descriptors=["zstd"]), "compressed or encrypted"),
    (lambda f, _: change_metadata(f, add_overlap), "two parts of tensors overlap in __0_0.distcp"),
    (lambda f, _: change_metadata(f, repeat_rows), "two parts of tensors overlap in __0_0.distcp"),
    (
        lambda f, _: change_metadata(f, lambda m: set_name(m, "a\nb")),
        r"'a\\nb' of 3 characters is not a valid tensor name",
    ),
    (lambda f, _: set_position(f, relative_path="a\nb"), r"'a\\nb', which is not a file in the same folder"),
    (lambda f, _: set_position(f, relative_path="a" * 300), "which is not a file in the same folder"),
    (lambda f, _: rewrite_archive(f, data=tensor_of((14,), (2, 1))), "is not contiguous"),
    (lambda f, _: rewrite_archive(f, compress=True), "is compressed"),
    (lambda f, _: rewrite_archive(f, byteorder=b"big"), "big-endian"),
    (lambda f, _: rewrite_archive(f, keep=0), "its tensor needs 56 bytes, but has 0"),
    (
        lambda f, c: rewrite_archive(f, data=pickle.dumps(Evil(c), 2)),
        "names 'posix.system', which no weight needs",
    ),
    (lambda f, _: rewrite_archive(f, data=pickle.dumps([1], 2)), "expected a tensor, found a list"),
    (lambda f, _: os.truncate(f / "__0_0.distcp", 900), "cut off"),
    (lambda f, _: (f / "__0_0.distcp").write_bytes(b"\0" * 4000), "is not an archive of torch.save"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD)
def test_a_damaged_checkpoint_is_an_error_of_one_line_and_nothing_is_run(tmp_path, spoil, words):
    folder, canary = write(tmp_path / "x"), tmp_path / "canary"
    spoil(folder, canary)
    with pytest.raises(ConfigError, match=words) as error:
        read(folder, "plain")
    assert len(str(error.value).splitlines()) == 1
    assert not canary.exists()


def test_a_flipped_bit_is_found_if_there_is_a_crc(tmp_path):
    """torch.load does not check it, and torch.save can leave it out."""
    for crc in (True, False):
        folder = tmp_path / str(crc)
        torch.serialization.set_crc32_options(crc)
        try:
            dcp.save({"plain": PLAIN}, checkpoint_id=str(folder))
        finally:
            torch.serialization.set_crc32_options(True)
        (part,) = find_slices(folder, "plain", read_metadata(folder)["plain"], None)[0].parts
        data = bytearray((folder / "__0_0.distcp").read_bytes())
        data[part.stored.start + 5] ^= 4
        (folder / "__0_0.distcp").write_bytes(data)
        if crc:
            with pytest.raises(ConfigError, match=f"is damaged: the elements at byte {part.stored.start} have another"):
                read(folder, "plain")
        else:
            assert not torch.equal(read(folder, "plain")[0], PLAIN)


def test_random_damage_is_an_error_of_one_line_or_harmless(tmp_path):
    """Bits flipped, bytes removed, inserted or cut off: no other error than ConfigError."""
    folder = write(tmp_path / "x")
    change_metadata(folder, lambda _: None)  # written by Python's pickle
    files = {name: (folder / name).read_bytes() for name in (".metadata", "__0_0.distcp")}
    generator = random_numbers.Random(5)
    errors = []
    for _ in range(300):
        name = generator.choice(list(files))
        data = bytearray(files[name])
        position, kind = generator.randrange(len(data)), generator.randrange(4)
        if kind == 0:
            data[position] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del data[position : position + generator.randrange(1, 9)]
        elif kind == 2:
            data[position:position] = generator.randbytes(4)
        else:
            del data[position:]
        (folder / name).write_bytes(data)
        try:
            found = read_metadata(folder)
            for known, layers in (("plain", None), ("stacked", range(3))):
                if known in found and len(found[known].shape) == (2 if layers is None else 3):
                    [read_slice(one) for one in find_slices(folder, known, found[known], layers)]
        except ConfigError as error:
            errors.append(str(error))
        (folder / name).write_bytes(files[name])
    assert 150 < len(errors) < 300
    assert all(len(text.splitlines()) == 1 for text in errors)


def bomb(n_tensors, n_parts):
    """Return metadata in which each of many tensors refers to one list that refers to one part very often."""
    chunk = metadata.ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1, 1]))
    tensor = metadata.TensorStorageMetadata(metadata.TensorProperties(torch.float32), torch.Size([1, 1]), [chunk])
    tensor.chunks *= n_parts  # the pickler writes the part once, and then refers to it
    names = [f"t{i}" for i in range(n_tensors)]
    described = metadata.Metadata(
        dict.fromkeys(names, tensor),
        storage_data={metadata.MetadataIndex(name, (0, 0)): info(offset=9 * i) for i, name in enumerate(names)},
    )
    return pickle.dumps(described)


def test_metadata_that_refers_to_one_object_often_is_refused_before_it_is_believed(tmp_path):
    """It would be 10^7 parts of tensors: minutes and gigabytes, from 0.1 MB."""
    (tmp_path / ".metadata").write_bytes(bomb(200, 50_000))
    assert (tmp_path / ".metadata").stat().st_size < 150_000
    tracemalloc.start()
    with pytest.raises(ConfigError, match="50000 parts of 't0' are described, and 1 stored"):
        read_metadata(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_long_name_of_many_parts_is_refused_at_once(tmp_path):
    """Ten MB to look through for each of 20,000 parts would take minutes."""
    name = "x" * 10_000_000
    parts = {metadata.MetadataIndex(name, (i,)): info(offset=9 * i) for i in range(20_000)}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata.Metadata({}, storage_data=parts)))
    with pytest.raises(ConfigError, match="of 10000000 characters is not a valid tensor name") as error:
        read_metadata(tmp_path)
    assert len(str(error.value)) < 400


def test_parts_that_overlap_or_are_missing_are_found(tmp_path):
    for number, offsets in enumerate([(0, 0), (0, 4)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        halves = (Part("x", (offset, 0), PLAIN[:4]) for offset in offsets)
        if number == 0:
            write_torch_dist(folder, halves, shapes={"x": (8, 2)}, dtype=torch.float32)
        else:
            write_torch_dist(folder, halves, shapes={"x": (9, 2)}, dtype=torch.float32)
        with pytest.raises(ConfigError, match=r"do not fill its shape|2 parts of .x. are described, and 1 stored"):
            read(folder, "x")
