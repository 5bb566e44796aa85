"""The token files are Megatron's, byte for byte, and bad ones are refused."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files import TokenFile, TokenFileWriter

DOCUMENTS = [[5, 6, 7, 1], [1], [], [300, 2, 1], [9] * 70 + [1]]
STREAM = [token for ids in DOCUMENTS for token in ids]


def write(prefix: Path, documents=DOCUMENTS, vocab_size=1000) -> Path:
    with TokenFileWriter(prefix, vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add_document(np.array(ids, dtype=np.int64))
    return prefix


def parse_index(data: bytes) -> dict:
    """The layout written down a second time, with struct alone."""
    magic, version, code, n_sequences, n_documents = struct.unpack_from("<9sQBQQ", data, 0)
    lengths = struct.unpack_from(f"<{n_sequences}i", data, 34)
    pointers = struct.unpack_from(f"<{n_sequences}q", data, 34 + 4 * n_sequences)
    documents = struct.unpack_from(f"<{n_documents}q", data, 34 + 12 * n_sequences)
    assert len(data) == 34 + 12 * n_sequences + 8 * n_documents
    return {
        "magic": magic,
        "version": version,
        "code": code,
        "lengths": lengths,
        "pointers": pointers,
        "documents": documents,
    }


@pytest.mark.parametrize(("vocab_size", "code", "kind"), [(65_499, 8, "<u2"), (65_500, 4, "<i4")])
def test_layout_is_megatrons(tmp_path, vocab_size, code, kind):
    prefix = write(tmp_path / "a", vocab_size=vocab_size)
    index = parse_index((tmp_path / "a.idx").read_bytes())
    size = np.dtype(kind).itemsize
    lengths = [len(ids) for ids in DOCUMENTS]
    assert index == {
        "magic": b"MMIDIDX\x00\x00",
        "version": 1,
        "code": code,
        "lengths": tuple(lengths),
        "pointers": tuple(size * sum(lengths[:i]) for i in range(len(lengths))),
        "documents": tuple(range(len(DOCUMENTS) + 1)),
    }
    assert (tmp_path / "a.idx").stat().st_size == 42 + 20 * len(DOCUMENTS)
    assert (tmp_path / "a.bin").read_bytes() == np.array(STREAM, dtype=kind).tobytes()
    assert TokenFile(prefix).dtype == np.dtype(kind)


def test_index_of_several_blocks_equals_one_of_a_single_block(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    monkeypatch.setattr("gpt.token_files._CHUNK", 2)
    write(tmp_path / "blocks")
    assert (tmp_path / "blocks.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


def test_reads_back_what_was_written(tmp_path):
    file = TokenFile(write(tmp_path / "a"))
    stream = np.array(STREAM)
    assert (file.n_tokens, file.n_documents) == (len(stream), len(DOCUMENTS))
    np.testing.assert_array_equal(file.read(0, file.n_tokens), stream)
    np.testing.assert_array_equal(file.read(3, 6), stream[3:6])
    expected = [(d, i) for d, ids in enumerate(DOCUMENTS) for i in range(len(ids))]
    assert [file.document_at(position) for position in range(file.n_tokens)] == expected
    assert [file.document_start(d) for d in range(file.n_documents + 1)] == [0, 4, 5, 5, 8, 79]
    copy = file.read(0, 3)
    copy[:] = 0
    assert file.read(0, 1)[0] == 5, "read must hand out a copy"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(file)).read(0, 5), stream[:5])


def test_documents_of_several_sequences_as_other_tools_write_them(tmp_path):
    """Three sequences in two documents: 1+2 and 3."""
    (tmp_path / "m.bin").write_bytes(np.arange(9, dtype="<i4").tobytes())
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, 3, 3)
    body = struct.pack("<3i", 2, 3, 4) + struct.pack("<3q", 0, 8, 20) + struct.pack("<3q", 0, 2, 3)
    (tmp_path / "m.idx").write_bytes(head + body)
    file = TokenFile(tmp_path / "m")
    assert (file.n_tokens, file.n_documents) == (9, 2)
    assert [file.document_at(p) for p in (0, 4, 5, 8)] == [(0, 0), (0, 4), (1, 0), (1, 3)]


def test_a_corpus_of_no_documents(tmp_path):
    file = TokenFile(write(tmp_path / "none", documents=[]))
    assert (file.n_tokens, file.n_documents, len(file.read(0, 0))) == (0, 0, 0)


def test_positions_outside_are_refused(tmp_path):
    file = TokenFile(write(tmp_path / "a"))
    for call in (lambda: file.read(70, 80), lambda: file.read(-1, 2), lambda: file.document_at(79)):
        with pytest.raises(ConfigError, match=r"holds tokens 0\.\.79"):
            call()


@pytest.mark.parametrize("bad", [1000, -1])
def test_ids_outside_the_vocabulary_leave_nothing_behind(tmp_path, bad):
    with pytest.raises(ConfigError, match=f"token id {bad} .* 0\\.\\.999"):
        write(tmp_path / "a", documents=[[1, 2], [3, bad]])
    assert list(tmp_path.iterdir()) == []


def test_documents_that_are_not_flat_integers_are_refused(tmp_path):
    for bad in (np.array([1.5]), np.array([[1, 2]])):
        with (
            pytest.raises(ConfigError, match="flat array of integers"),
            TokenFileWriter(tmp_path / "a", vocab_size=9) as w,
        ):
            w.add_document(bad)


def test_files_appear_only_at_the_end_and_old_ones_stay_until_then(tmp_path):
    write(tmp_path / "a", documents=[[1]])
    with TokenFileWriter(tmp_path / "a", vocab_size=10) as writer:
        writer.add_document(np.array([2, 3]))
        assert TokenFile(tmp_path / "a").n_tokens == 1
    assert TokenFile(tmp_path / "a").n_tokens == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def damage(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: damage(data, 0, b"X"), "not a Megatron token index"),
        (lambda data: damage(data, 9, b"\x02"), "version 2"),
        (lambda data: damage(data, 17, b"\x06"), "dtype code 6"),
        (lambda data: damage(data, 18, b"\x04"), r"a\.idx: 142 bytes, but a\.idx says 130"),
        (lambda data: data[:-1], r"a\.idx: 141 bytes, but a\.idx says 142"),
        (lambda data: data[:20], "20 bytes are too few"),
        (lambda data: damage(data, len(data) - 8, b"\x03"), "document marks run from 0 to 3"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, change, message):
    write(tmp_path / "a")
    (tmp_path / "a.idx").write_bytes(change((tmp_path / "a.idx").read_bytes()))
    with pytest.raises(ConfigError, match=message):
        TokenFile(tmp_path / "a")


def test_a_missing_byte_or_file_is_refused(tmp_path):
    write(tmp_path / "a")
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[:-1])
    with pytest.raises(ConfigError, match=r"a\.bin: 157 bytes, but a\.idx says 158"):
        TokenFile(tmp_path / "a")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ConfigError, match=r"a\.bin: no such token file"):
        TokenFile(tmp_path / "a")


def test_megatron_core_reads_our_files_and_we_read_its(tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    dataset = indexed.IndexedDataset(str(write(tmp_path / "ours")))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for ids in DOCUMENTS:
        builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"theirs{suffix}").read_bytes() == (tmp_path / f"ours{suffix}").read_bytes()
    np.testing.assert_array_equal(TokenFile(tmp_path / "theirs").read(0, len(STREAM)), STREAM)
