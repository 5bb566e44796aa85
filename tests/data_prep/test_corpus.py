"""Splits, order and token files of a corpus: each document whole, in one split, in an order that its id decides."""

import json
import math
import os
from collections import Counter

import numpy as np
import pytest

from data_prep.corpus import MergeTask, entropy_nats, merge_split, publish, read_corpus
from data_prep.documents import Document, encode_line, keyed_hash, read_shard, write_shard
from data_prep.recipe import OutputConfig
from data_prep.tokenize import SplitConfig, TokenizerConfig, TrainTask, tokenize_shard, train_tokenizer
from gpt.errors import ConfigError
from gpt.token_files import TokenFile
from gpt.tokenizer import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

SPLIT = SplitConfig(validation_fraction=0.25, seed=3)


@pytest.fixture(scope="module")
def documents(prose) -> list[Document]:
    return [Document(f"doc-{n}", prose(n, 6) + "\n▁\ttab", {"n": n}) for n in range(60)]


def build(folder, documents, n_shards):
    """(tokenizer, {split: (ids of each document in order)}) of documents in n shards."""
    folder.mkdir()
    shards = []
    for number in range(n_shards):
        shards.append(folder / f"{number}.zst")
        with write_shard(shards[-1]) as write:
            for document in documents[number::n_shards]:
                write(document)
    model = folder / "tokenizer.model"
    train_tokenizer(TrainTask(TokenizerConfig(vocab_size=400), SPLIT), tuple(shards), (model,))
    tokenized = []
    for number, shard in enumerate(shards):
        outputs = (folder / f"{number}.tokens", folder / f"{number}.npy")
        result = tokenize_shard(SPLIT, (shard, model), outputs)
        assert result.facts["tokens"] * 2 == outputs[0].stat().st_size
        tokenized += outputs
    facts = {}
    for name in ("train", "validation"):
        outputs = (folder / f"{name}.bin", folder / f"{name}.idx")
        facts[name] = merge_split(MergeTask(name == "validation", 400), tuple(tokenized), outputs).facts
    return facts


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
    shares = [n / len(ids) for n in Counter(ids).values()]
    assert facts["validation"]["unigram_entropy_nats"] == pytest.approx(-sum(s * math.log(s) for s in shares))


def test_bytes_do_not_depend_on_shards_or_order(tmp_path, documents):
    facts = [build(tmp_path / "a", documents, 3), build(tmp_path / "b", documents[::-1], 1)]
    assert facts[0] == facts[1]
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx", "tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_train_bytes_limits_what_the_tokenizer_sees(tmp_path, documents):
    with write_shard(tmp_path / "s") as write:
        for document in documents:
            write(document)
    sizes = []
    for train_bytes in (3_000, 10_000_000):
        config = TrainTask(TokenizerConfig(vocab_size=20_000, train_bytes=train_bytes), SPLIT)
        with pytest.raises(ConfigError, match=r"set vocab_size = \d+") as caught:
            train_tokenizer(config, (tmp_path / "s",), (tmp_path / "t.model",))
        sizes.append(int(str(caught.value).split("set vocab_size = ")[1].split()[0]))
    assert sizes[0] < sizes[1]


def test_keyed_hash_is_uniform_and_pinned():
    values = np.array([keyed_hash(f"doc-{n}", key="validation 0") / 2**64 for n in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02
    assert abs((values < 0.05).mean() - 0.05) < 0.015
    assert keyed_hash("doc-1", key="validation 0") == 668465944536163900, (
        "a changed hash would move documents between the splits"
    )


def test_entropy():
    assert entropy_nats([5, 5, 0, 5, 5]) == pytest.approx(math.log(4))
    assert entropy_nats([7, 0]) == entropy_nats([]) == 0


def test_shards_carry_any_text(tmp_path):
    documents = [Document("a\n", "tab\t nul\x00 newline\n 🎉 \u2028", {"k": [1, None]}), Document("b", "")]
    with write_shard(tmp_path / "s") as write:
        for document in documents:
            write(document)
    assert list(read_shard(tmp_path / "s")) == documents
    assert encode_line(documents[0]).count(b"\n") == 1
    assert [d.n_bytes for d in documents] == [len(d.text.encode()) for d in documents]


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

    def full(source, target):
        if target.name.endswith("train.idx"):
            raise OSError(28, "No space left on device", str(target))
        real_link(source, target)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        publish(out, sources, {"n": 2})
    assert read_corpus(out) == {"n": 1}
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx"]
    assert (out / "train.bin").read_text() == "first train.bin"
    monkeypatch.undo()
    (out / ".tmp-1-train.bin").write_text("left by a killed run")
    publish(out, sources, {"n": 2})
    assert json.loads((out / "corpus.json").read_text()) == {"n": 2}
    assert (out / "train.idx").read_text() == "second train.idx"
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx"]


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="give vocab_size to train a tokenizer, or path"):
        TokenizerConfig()
    with pytest.raises(ConfigError, match=r"vocab_size = 200 must be at least 300"):
        TokenizerConfig(vocab_size=200)
    with pytest.raises(ConfigError, match=r"validation_fraction = 1\.0"):
        OutputConfig(tmp_path, validation_fraction=1.0)
    with pytest.raises(ConfigError, match="run `triaxial prepare`"):
        read_corpus(tmp_path)
