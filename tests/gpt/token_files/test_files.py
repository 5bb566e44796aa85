"""Token files equal Megatron's byte for byte, and invalid ones are refused."""

import itertools
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile, TokenFileWriter, sampled_digest

DOCUMENTS = [[5, 6, 7, 1], [1], [], [300, 2, 1], [9] * 70 + [1]]
STREAM = [token for ids in DOCUMENTS for token in ids]


def write(prefix: Path, documents=DOCUMENTS, vocab_size=1000) -> Path:
    with TokenFileWriter(prefix, vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add_document(np.array(ids, dtype=np.int64))
    return prefix


def parse_index(data: bytes) -> dict:
    """Parse the layout independently, with struct only."""
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
def test_the_layout_is_megatrons(tmp_path, vocab_size, code, kind):
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


def test_written_documents_are_read_back(tmp_path):
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
    assert file.read(0, 1)[0] == 5, "read must return a copy"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(file)).read(0, 5), stream[:5])


def test_documents_of_several_sequences_from_other_tools_are_read(tmp_path):
    """Three sequences in two documents: 1+2 and 3."""
    (tmp_path / "m.bin").write_bytes(np.arange(9, dtype="<i4").tobytes())
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, 3, 3)
    body = struct.pack("<3i", 2, 3, 4) + struct.pack("<3q", 0, 8, 20) + struct.pack("<3q", 0, 2, 3)
    (tmp_path / "m.idx").write_bytes(head + body)
    file = TokenFile(tmp_path / "m")
    assert (file.n_tokens, file.n_documents) == (9, 2)
    assert [file.document_at(p) for p in (0, 4, 5, 8)] == [(0, 0), (0, 4), (1, 0), (1, 3)]


def test_a_corpus_without_documents(tmp_path):
    file = TokenFile(write(tmp_path / "none", documents=[]))
    assert (file.n_tokens, file.n_documents, len(file.read(0, 0))) == (0, 0, 0)


def test_positions_outside_are_refused(tmp_path):
    file = TokenFile(write(tmp_path / "a"))
    for call in (lambda: file.read(70, 80), lambda: file.read(-1, 2), lambda: file.document_at(79)):
        with pytest.raises(ConfigError, match=r"has 79 tokens"):
            call()


@pytest.mark.parametrize("bad", [1000, -1])
def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_written(tmp_path, bad):
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


def test_new_files_replace_old_ones_only_at_the_end(tmp_path):
    write(tmp_path / "a", documents=[[1]])
    with TokenFileWriter(tmp_path / "a", vocab_size=10) as writer:
        writer.add_document(np.array([2, 3]))
        assert TokenFile(tmp_path / "a").n_tokens == 1
    assert TokenFile(tmp_path / "a").n_tokens == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.sums"]


def test_a_missing_byte_or_file_is_refused(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a.sums").unlink()
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[:-1])
    with pytest.raises(ConfigError, match=r"a\.bin: 157 bytes, but a\.idx says 158"):
        TokenFile(tmp_path / "a")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ConfigError, match=r"a\.bin: no such token file"):
        TokenFile(tmp_path / "a")


def write_set(folder: Path, parts) -> list[str]:
    for number, documents in enumerate(parts):
        write(folder / f"a-{number:05d}-of-{len(parts):05d}", documents=documents)
    return [f"a-{number:05d}-of-{len(parts):05d}" for number in range(len(parts))]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 2, 4), (0, 5)])
def test_a_set_of_shards_reads_as_one_file(tmp_path, cuts):
    """Divided between any two documents, also with empty shards: everything equals the single file."""
    edges = [0, *cuts, len(DOCUMENTS)]
    write_set(tmp_path, [DOCUMENTS[a:b] for a, b in itertools.pairwise(edges)])
    parts, whole = TokenFile(tmp_path / "a"), TokenFile(write(tmp_path / "whole"))
    assert (parts.n_tokens, parts.n_documents, parts.dtype) == (whole.n_tokens, whole.n_documents, whole.dtype)
    for start in range(whole.n_tokens + 1):
        for stop in {start, start + 1, start + 9, whole.n_tokens}:
            if start <= stop <= whole.n_tokens:
                np.testing.assert_array_equal(parts.read(start, stop), whole.read(start, stop))
    for n in range(whole.n_tokens):
        assert parts.document_at(n) == whole.document_at(n)
        path = parts.bin_path(n)
        assert parts.read(n, n + 1)[0] in np.fromfile(path, dtype="<u2")
    assert [parts.document_start(d) for d in range(6)] == [whole.document_start(d) for d in range(6)]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(parts)).read(0, 79), STREAM)
    parts.read(0, 3)[:] = 0
    assert parts.read(0, 1)[0] == 5, "read must return a copy"


def test_an_incomplete_or_ambiguous_set_is_refused(tmp_path):
    names = write_set(tmp_path, [DOCUMENTS[:2], DOCUMENTS[2:4], DOCUMENTS[4:]])
    assert TokenFile(tmp_path / names[1]).n_tokens == 3, "one of a set can be read by its own name"
    moved = (tmp_path / f"{names[1]}.idx").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"{names[1]}\.idx: no such file; the set of 3"):
        TokenFile(tmp_path / "a")
    moved.rename(tmp_path / f"{names[1]}.idx")
    write(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"a\.bin and a-00000-of-00003 are token files of two corpora"):
        TokenFile(tmp_path / "a")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"a{suffix}").rename(tmp_path / f"a-00004-of-00009{suffix}")
    with pytest.raises(ConfigError, match=r"a-00000-of-00003 and a-00000-of-00009"):
        TokenFile(tmp_path / "a")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"a-00004-of-00009{suffix}").unlink()
    write(tmp_path / names[2], vocab_size=70_000)
    with pytest.raises(ConfigError, match=rf"{names[2]}\.idx: ids of type int32, but {names[0]}\.idx has uint16"):
        TokenFile(tmp_path / "a")


def test_documents_written_in_one_call_equal_those_written_one_by_one(tmp_path):
    write(tmp_path / "one")
    with TokenFileWriter(tmp_path / "many", vocab_size=1000) as writer:
        for part in (DOCUMENTS[:3], [], DOCUMENTS[3:]):
            ids = np.array([i for document in part for i in document], dtype=np.uint32)
            writer.add_documents(ids, np.array([len(document) for document in part], dtype=np.int32))
    assert writer.n_tokens == len(STREAM)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"many{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    with TokenFileWriter(tmp_path / "bad", vocab_size=1000) as writer:
        writer.add_documents(np.array([1, 2, 3]), np.array([3], dtype=np.int32))
        with pytest.raises(ConfigError, match=r"token id 1000 in document 3 is outside"):
            writer.add_documents(np.array([1, 2, 1000, 4]), np.array([1, 0, 3], dtype=np.int32))


def test_a_sampled_digest_covers_both_ends_and_the_length(tmp_path):
    path = tmp_path / "f"
    content = bytes(range(256)) * 4096  # 1 MiB
    digests = []
    for change in ({}, {0: 1}, {len(content) - 1: 1}, {(len(content) - 4096) // 15 + 4095: 1}, {300_000: 1}):
        path.write_bytes(bytes(byte ^ change[i] if i in change else byte for i, byte in enumerate(content)))
        digests.append(sampled_digest(path))
    path.write_bytes(content[:-1])
    digests.append(sampled_digest(path))
    assert digests[0] == digests[4], "bytes between the samples are not read"
    assert len(set(digests)) == 5
    sizes = (0, 1, 4096, 4097, 100_000, 100_001)
    assert len({(path.write_bytes(bytes(size)), sampled_digest(path))[1] for size in sizes}) == len(sizes)


def test_megatron_core_and_we_read_each_others_files(tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    torch = pytest.importorskip("torch")
    for vocab_size in (1000, 70_000):
        ours, theirs = tmp_path / f"ours-{vocab_size}", tmp_path / f"theirs-{vocab_size}"
        dataset = indexed.IndexedDataset(str(write(ours, vocab_size=vocab_size)))
        assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
        kind = indexed.DType.optimal_dtype(vocab_size)
        builder = indexed.IndexedDatasetBuilder(f"{theirs}.bin", dtype=kind)
        for ids in DOCUMENTS:
            builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
        builder.finalize(f"{theirs}.idx")
        for suffix in (".bin", ".idx"):
            assert Path(f"{theirs}{suffix}").read_bytes() == Path(f"{ours}{suffix}").read_bytes()
        np.testing.assert_array_equal(TokenFile(theirs).read(0, len(STREAM)), STREAM)
