"""Splits, order and token files of a corpus: each document whole, in one split, in an order that its id decides."""

import json
import math
import os
from collections import Counter

import numpy as np
import pytest

from data_prep.corpus import tokenizer_training
from data_prep.corpus.corpus import entropy_nats, publish, read_corpus, shard_names
from data_prep.corpus.shards import FILE_ENDINGS, FileTask, write_file
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import ROW, TokenizerConfig, blocks, tokenize_shard
from data_prep.corpus.tokenizer_training import SampleTask, TrainTask, sample_bound, sample_shard, train_tokenizer
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.files import lock_folder
from data_prep.recipe import OutputConfig
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

SPLIT = SplitConfig(validation_fraction=0.25, seed=3)


@pytest.fixture(scope="module")
def documents(prose) -> list[Document]:
    return [Document(f"doc-{n}", prose(n, 6) + "\n▁\ttab", {"n": n}) for n in range(60)]


def write_shards(folder, documents, n_shards):
    folder.mkdir()
    shards = []
    for number in range(n_shards):
        shards.append(folder / f"{number}.zst")
        with write_shard(shards[-1]) as write:
            for document in documents[number::n_shards]:
                write(document)
    return shards


def build(folder, documents, n_shards, n_files=1):
    """Facts of the files of both splits, by name, of documents in n shards."""
    shards = write_shards(folder, documents, n_shards)
    model = folder / "tokenizer.model"
    train_tokenizer(TrainTask(TokenizerConfig(vocab_size=400), SPLIT), tuple(shards), (model,))
    tokenized, totals = [], Counter()
    for number, shard in enumerate(shards):
        outputs = (folder / f"{number}.tokens", folder / f"{number}.npy")
        facts = tokenize_shard(SPLIT, (shard, model), outputs).facts
        assert sum(split["tokens"] for split in facts.values()) * 2 == outputs[0].stat().st_size
        totals.update({(split, key): n for split, about in facts.items() for key, n in about.items()})
        tokenized += outputs
    files = {}
    for split, prefix in (("training", "train"), ("validation", "validation")):
        for number, name in enumerate(shard_names(prefix, n_files)):
            outputs = tuple(folder / f"{name}{ending}" for ending in FILE_ENDINGS)
            task = FileTask(split == "validation", number, n_files, 400)
            files[name] = write_file(task, tuple(tokenized), outputs).facts
            totals.subtract({(split, key): files[name][key] for key in ("tokens", "documents")})
    assert set(totals.values()) == {0}, "what the shards hold is what the files hold"
    return files


def texts(folder, name) -> list[str]:
    tokenizer, file = load_tokenizer(folder / "tokenizer.model"), TokenFile(folder / name)
    found = []
    for n in range(file.n_documents):
        ids = file.read(file.document_start(n), file.document_start(n + 1)).tolist()
        assert ids[-1] == tokenizer.end_of_document_id
        assert tokenizer.end_of_document_id not in ids[:-1]
        found.append(tokenizer.decode(ids[:-1]))
    return found


def test_every_document_is_in_one_split_word_for_word(tmp_path, documents):
    facts = build(tmp_path / "a", documents, 3)
    train, validation = texts(tmp_path / "a", "train"), texts(tmp_path / "a", "validation")
    assert sorted(train + validation) == sorted(document.text for document in documents)
    by_text = {document.text: document.id for document in documents}
    assert all(SPLIT.is_validation(by_text[text]) for text in validation)
    assert not any(SPLIT.is_validation(by_text[text]) for text in train)
    assert 5 <= len(validation) <= 25
    assert [by_text[text] for text in train] == sorted((by_text[text] for text in train), key=SPLIT.order)
    assert train != [d.text for d in documents if d.text in set(train)], "the order must not be that of the input"
    ids = TokenFile(tmp_path / "a/validation").read(0, facts["validation"]["tokens"]).tolist()
    counts = np.load(tmp_path / "a/validation.counts.npy")
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == Counter(ids)
    shares = [n / len(ids) for n in Counter(ids).values()]
    assert entropy_nats(counts) == pytest.approx(-sum(s * math.log(s) for s in shares))


@pytest.mark.parametrize("n_files", [1, 3])
def test_bytes_do_not_depend_on_shards_or_order(tmp_path, documents, n_files, monkeypatch):
    twins = [*documents, Document("doc-7", "another text of the same id"), documents[8]]
    facts = [build(tmp_path / "a", twins, 3, n_files)]
    monkeypatch.setattr("data_prep.corpus.tokenize._BATCH_CHARACTERS", 300)  # and not on how much is done at a time
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


def test_several_files_are_one_stream_cut_where_the_order_is(tmp_path, documents):
    """Every file holds its part of the order and no more, so the set read as one is the single file."""
    build(tmp_path / "one", documents, 2)
    files = build(tmp_path / "five", documents, 4, n_files=5)
    by_text = {document.text: document.id for document in documents}
    for prefix in ("train", "validation"):
        whole, parts = TokenFile(tmp_path / "one" / prefix), TokenFile(tmp_path / "five" / prefix)
        np.testing.assert_array_equal(whole.read(0, whole.n_tokens), parts.read(0, parts.n_tokens))
        starts = [[file.document_start(n) for n in range(file.n_documents + 1)] for file in (whole, parts)]
        assert starts[0] == starts[1]
    for number, name in enumerate(shard_names("train", 5)):
        places = [SPLIT.order(by_text[text]) for text in texts(tmp_path / "five", name)]
        assert places == sorted(places)
        assert all(place * 5 >> 64 == number for place in places)
        assert len(places) == files[name]["documents"] > 2


def test_a_file_that_gets_no_document_and_a_shard_that_has_none(tmp_path, documents):
    build(tmp_path / "a", documents[:3], 1, n_files=8)
    file = TokenFile(tmp_path / "a/train")
    assert file.n_documents == sum(not SPLIT.is_validation(document.id) for document in documents[:3])
    shards = write_shards(tmp_path / "b", [], 1)
    outputs = (tmp_path / "b/0.tokens", tmp_path / "b/0.npy")
    assert tokenize_shard(SPLIT, (shards[0], tmp_path / "a/tokenizer.model"), outputs).facts["training"]["tokens"] == 0
    files = tuple(tmp_path / "b" / f"train{ending}" for ending in FILE_ENDINGS)
    assert write_file(FileTask(False, 0, 1, 400), outputs, files).facts["documents"] == 0


def test_parts_of_the_order_meet_without_a_gap():
    for n_files in (1, 3, 7, 1000):
        tasks = [FileTask(False, number, n_files, 400) for number in range(n_files)]
        assert [task.end for task in tasks] == [task.first for task in tasks[1:]] + [2**64]
        assert tasks[0].first == 0
    lengths = np.array([3, 3, 10, 1, 1, 1, 5], dtype=np.int32)
    assert [lengths[block].tolist() for block in blocks(lengths, 6)] == [[3, 3], [10], [1, 1, 1], [5]]
    assert ROW.itemsize == 29, "docs/guides/data/corpus.md says what a document costs"


def seen_by_training(folder, documents, n_shards, train_bytes):
    """The texts that the tokenizer is trained on, by way of samples of the shards."""
    shards = write_shards(folder, documents, n_shards)
    n_bytes = sum(document.n_bytes for document in documents)
    below = sample_bound(train_bytes, documents=len(documents), n_bytes=n_bytes)
    samples = [folder / f"{number}.sample.zst" for number in range(n_shards)]
    for shard, sample in zip(shards, samples, strict=True):
        sample_shard(SampleTask(SPLIT, below), (shard,), (sample,))
    size = sum(document.n_bytes for sample in samples for document in read_shard(sample))
    config = TrainTask(TokenizerConfig(vocab_size=400, train_bytes=train_bytes), SPLIT)
    return list(tokenizer_training._training_texts(samples, config)), size / n_bytes


def test_the_tokenizer_sees_the_first_documents_of_the_order_whatever_the_shards(tmp_path, prose):
    documents = [Document(f"doc-{n}", prose(n, 1 + n % 9)) for n in range(1500)]
    training = sorted((d for d in documents if not SPLIT.is_validation(d.id)), key=lambda d: SPLIT.order(d.id))
    ends = np.cumsum([d.n_bytes for d in training])
    for case, train_bytes in enumerate((20_000, 10_000_000)):
        expected = [d.text for d in training[: int(np.searchsorted(ends, train_bytes, side="right"))]]
        found, share = seen_by_training(tmp_path / f"{case}-3", documents, 3, train_bytes)
        assert found == expected
        assert seen_by_training(tmp_path / f"{case}-1", documents[::-1], 1, train_bytes)[0] == expected
        assert share < 0.2 or case == 1, "the samples are a small part of the shards"
    shards = write_shards(tmp_path / "more", documents, 4)
    for train_bytes in range(5_000, 65_000, 6_000):
        config = TrainTask(TokenizerConfig(vocab_size=400, train_bytes=train_bytes), SPLIT)
        expected = [d.text for d in training[: int(np.searchsorted(ends, train_bytes, side="right"))]]
        assert list(tokenizer_training._training_texts(shards, config)) == expected
    large = [Document(f"large-{n}", prose(n, 60)) for n in range(5)]
    found, _ = seen_by_training(tmp_path / "large", large, 2, 100)
    first = min((d for d in large if not SPLIT.is_validation(d.id)), key=lambda d: SPLIT.order(d.id))
    assert found == [first.text], "one document at least, even one above the budget"


def test_entropy():
    assert entropy_nats([5, 5, 0, 5, 5]) == pytest.approx(math.log(4))
    assert entropy_nats([7, 0]) == entropy_nats([]) == 0


def test_publishing_is_all_or_nothing(tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    sources = {name: work / name for name in ("train.bin", "train.idx")}
    for name, path in sources.items():
        path.write_text(f"first {name}")
    publish(out, sources, {"n": 1})
    assert read_corpus(out) == {"n": 1}
    before = (out / "corpus.json").stat().st_mtime_ns, (out / "train.bin").stat().st_ino
    publish(out, sources, {"n": 1})
    assert ((out / "corpus.json").stat().st_mtime_ns, (out / "train.bin").stat().st_ino) == before, "nothing to do"
    for name, path in sources.items():
        path.unlink()
        path.write_text(f"second {name}")
    real_link = os.link

    def full(source, target, *length):
        if length or source.name == "train.idx":  # neither linked nor copied
            raise OSError(28, "No space left on device")
        real_link(source, target)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        publish(out, sources, {"n": 2})
    assert read_corpus(out) == {"n": 1}
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx"]
    assert (out / "train.bin").read_text() == "first train.bin"
    monkeypatch.undo()
    (out / ".tmp-1-train.bin").write_text("left by a killed run")
    for name in ("train-00000-of-00002.bin", "validation.idx"):
        (out / name).write_text("of an older corpus")
    (out / "training.bin").write_text("no name of ours")
    publish(out, sources, {"n": 2})
    assert json.loads((out / "corpus.json").read_text()) == {"n": 2}
    assert (out / "train.idx").read_text() == "second train.idx"
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx", "training.bin"]


def test_two_runs_that_publish_in_one_folder(tmp_path):
    (tmp_path / "train.bin").write_text("x")
    (tmp_path / "out").mkdir()
    with (
        lock_folder(tmp_path / "out"),
        pytest.raises(ConfigError, match="another run is writing its corpus here"),
    ):
        publish(tmp_path / "out", {"train.bin": tmp_path / "train.bin"}, {"n": 1})
    assert list((tmp_path / "out").iterdir()) == []
    publish(tmp_path / "out", {"train.bin": tmp_path / "train.bin"}, {"n": 1})


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="set vocab_size to train a tokenizer, or path"):
        TokenizerConfig()
    with pytest.raises(ConfigError, match=r"vocab_size = 200 must be at least 300"):
        TokenizerConfig(vocab_size=200)
    with pytest.raises(ConfigError, match=r"validation_fraction = 1\.0"):
        OutputConfig(tmp_path, validation_fraction=1.0)
    with pytest.raises(ConfigError, match=r"shard_tokens = 0 is invalid: must be at least 1"):
        OutputConfig(tmp_path, shard_tokens=0)
    with pytest.raises(ConfigError, match="run `triaxial prepare`"):
        read_corpus(tmp_path)
