"""Each document is in one file, complete, in an order that depends only on its id."""

import math
from collections import Counter

import numpy as np
import pytest
from corpus_cases import SPLIT, build, texts, write_shards

from data_prep.corpus.corpus import entropy_nats, shard_names
from data_prep.corpus.shards import FILE_ENDINGS, FileTask, write_file
from data_prep.corpus.tokenize import tokenize_shard
from data_prep.documents.shards import Document
from gpt.token_files.files import TokenFile

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


@pytest.fixture(scope="module")
def documents(prose) -> list[Document]:
    return [Document(f"doc-{n}", prose(n, 6) + "\n▁\ttab", {"n": n}) for n in range(60)]


def test_every_document_is_complete_in_one_split(tmp_path, documents):
    facts = build(tmp_path / "a", documents, 3)
    train, validation = texts(tmp_path / "a", "train"), texts(tmp_path / "a", "validation")
    assert sorted(train + validation) == sorted(document.text for document in documents)
    by_text = {document.text: document.id for document in documents}
    assert all(SPLIT.is_validation(by_text[text]) for text in validation)
    assert not any(SPLIT.is_validation(by_text[text]) for text in train)
    assert 5 <= len(validation) <= 25
    assert [by_text[text] for text in train] == sorted((by_text[text] for text in train), key=SPLIT.order)
    assert train != [d.text for d in documents if d.text in set(train)], "the order differs from that of the input"
    ids = TokenFile(tmp_path / "a/validation").read(0, facts["validation"]["tokens"]).tolist()
    counts = np.load(tmp_path / "a/validation.counts.npy")
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == Counter(ids)
    shares = [n / len(ids) for n in Counter(ids).values()]
    assert entropy_nats(counts) == pytest.approx(-sum(s * math.log(s) for s in shares))


@pytest.mark.parametrize("n_files", [1, 3])
def test_bytes_do_not_depend_on_shards_or_order(tmp_path, documents, n_files, monkeypatch):
    twins = [*documents, Document("doc-7", "another text of the same id"), documents[8]]
    facts = [build(tmp_path / "a", twins, 3, n_files)]
    monkeypatch.setattr("data_prep.corpus.tokenize._BATCH_CHARACTERS", 300)  # nor on the sizes of batches and blocks
    monkeypatch.setattr("data_prep.corpus.tokenize._COPIED_TOKENS", 100)
    monkeypatch.setattr("data_prep.corpus.shards._BLOCK_TOKENS", 100)
    monkeypatch.setattr("data_prep.corpus.shards._COUNTED_TOKENS", 7)
    facts.append(build(tmp_path / "b", twins[::-1], 1, n_files))
    assert facts[0] == facts[1]
    for name in (
        "tokenizer.model",
        *(f"{name}.{suffix}" for name in facts[0] for suffix in ("bin", "idx", "counts.npy")),
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_several_files_are_the_single_file_cut_by_the_order(tmp_path, documents):
    """Every file has exactly its range of the order; read together they equal the single file."""
    build(tmp_path / "one", documents, 2)
    files = build(tmp_path / "five", documents, 4, n_files=5)
    by_text = {document.text: document.id for document in documents}
    for prefix in ("train", "validation"):
        whole, parts = TokenFile(tmp_path / "one" / prefix), TokenFile(tmp_path / "five" / prefix)
        np.testing.assert_array_equal(whole.read(0, whole.n_tokens), parts.read(0, parts.n_tokens))
        starts = [[file.document_start(n) for n in range(file.n_documents + 1)] for file in (whole, parts)]
        assert starts[0] == starts[1]
    for number, name in enumerate(shard_names("train", 5)):
        orders = [SPLIT.order(by_text[text]) for text in texts(tmp_path / "five", name)]
        assert orders == sorted(orders)
        assert all(order * 5 >> 64 == number for order in orders)
        assert len(orders) == files[name]["documents"] > 2


def test_files_and_shards_without_documents(tmp_path, documents):
    build(tmp_path / "a", documents[:3], 1, n_files=8)
    file = TokenFile(tmp_path / "a/train")
    assert file.n_documents == sum(not SPLIT.is_validation(document.id) for document in documents[:3])
    shards = write_shards(tmp_path / "b", [], 1)
    outputs = (tmp_path / "b/0.tokens", tmp_path / "b/0.npy")
    assert tokenize_shard(SPLIT, (shards[0], tmp_path / "a/tokenizer.model"), outputs).facts["training"]["tokens"] == 0
    files = tuple(tmp_path / "b" / f"train{ending}" for ending in FILE_ENDINGS)
    assert write_file(FileTask(False, 0, 1, 400), outputs, files).facts["documents"] == 0


def test_ranges_of_the_order_have_no_gap():
    for n_files in (1, 3, 7, 1000):
        tasks = [FileTask(False, number, n_files, 400) for number in range(n_files)]
        assert [task.end for task in tasks] == [task.first for task in tasks[1:]] + [2**64]
        assert tasks[0].first == 0
