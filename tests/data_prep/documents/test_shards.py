"""Write and read shards of documents; ids and hashes never change."""

import numpy as np
import pytest

from data_prep.documents.shards import (
    Document,
    content_id,
    encode_line,
    keyed_hash,
    parent_id,
    piece_id,
    read_shard,
    whole_text,
    write_shard,
)

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_keyed_hash_is_uniform_and_pinned():
    values = np.array([keyed_hash(f"doc-{n}", key="validation 0") / 2**64 for n in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02
    assert abs((values < 0.05).mean() - 0.05) < 0.015
    assert keyed_hash("doc-1", key="validation 0") == 668465944536163900, (
        "a changed hash would move documents between the splits"
    )


def test_shards_carry_any_text(tmp_path):
    documents = [Document("a\n", "tab\t nul\x00 newline\n 🎉 \u2028", {"k": [1, None]}), Document("b", "")]
    with write_shard(tmp_path / "s") as write:
        for document in documents:
            write(document)
    assert list(read_shard(tmp_path / "s")) == documents
    assert encode_line(documents[0]).count(b"\n") == 1
    assert [d.n_bytes for d in documents] == [len(d.text.encode()) for d in documents]


def test_ids_depend_on_the_content_and_pieces_know_their_document():
    assert content_id("text", b"ab", b"c") != content_id("text", b"a", b"bc"), "the borders between parts count"
    assert content_id("text", b"a") == "text:fc9c942180a48b1bfa36938828a429dc", "another digest renames documents"
    assert parent_id(piece_id("doc#7", 3)) == parent_id("doc#7") == "doc#7"


def test_lone_surrogates_become_replacement_characters():
    assert whole_text("a\ud800b") == "a\ufffdb"
    assert whole_text("\U0001f389") == "\U0001f389"
