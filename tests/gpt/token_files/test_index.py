"""The index of token files: written in blocks, and refused when damaged."""

from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.token_files.index import Shard

DOCUMENTS = [[5, 6, 7, 1], [1], [], [300, 2, 1], [9] * 70 + [1]]
STREAM = [token for ids in DOCUMENTS for token in ids]


def write(prefix: Path, documents=DOCUMENTS, vocab_size=1000) -> Path:
    with TokenFileWriter(prefix, vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add_document(np.array(ids, dtype=np.int64))
    return prefix


def test_an_index_written_in_several_blocks_equals_one_of_a_single_block(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    monkeypatch.setattr("gpt.token_files.index._CHUNK", 2)
    write(tmp_path / "blocks")
    assert (tmp_path / "blocks.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


def test_documents_and_tokens_of_one_shard(tmp_path):
    shard = Shard(write(tmp_path / "a"))
    assert (shard.n_tokens, shard.n_documents) == (len(STREAM), len(DOCUMENTS))
    assert [shard.document_start(n) for n in range(len(DOCUMENTS) + 1)] == [0, 4, 5, 5, 8, 79]
    assert shard.tokens.read(0, 79).tolist() == STREAM
    assert shard.sums is not None
    assert Shard(tmp_path / "a", compare=False).sums is None


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
    (tmp_path / "a.sums").unlink()
    (tmp_path / "a.idx").write_bytes(change((tmp_path / "a.idx").read_bytes()))
    with pytest.raises(ConfigError, match=message):
        TokenFile(tmp_path / "a")


@pytest.mark.parametrize("number", [-(2**40), 2**40])
def test_a_document_that_begins_outside_the_file_is_damage(tmp_path, number):
    """In an index without checksums: the mark of a document, or the pointer of its sequence."""
    write(tmp_path / "a")
    (tmp_path / "a.sums").unlink()
    data, n = (tmp_path / "a.idx").read_bytes(), len(DOCUMENTS)
    pointers, marks = 34 + 4 * n, 34 + 12 * n
    for start in (pointers, marks):
        (tmp_path / "a.idx").write_bytes(damage(data, start + 8, number.to_bytes(8, "little", signed=True)))
        with pytest.raises(DamagedTokens, match=r"a\.idx: document 1 does not begin in the file"):
            Shard(tmp_path / "a").document_start(1)


def test_a_set_of_more_shards_than_files_is_refused_before_it_is_listed(tmp_path):
    write(tmp_path / "a-00000-of-99999999999999")
    with pytest.raises(ConfigError, match="the set of 99999999999999 shards is incomplete"):
        TokenFile(tmp_path / "a")
