"""A corpus that differs from its corpus.json is found: always by `prepare verify`, mostly when it is opened."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus.corpus import CORPUS_FILE, seal
from data_prep.corpus.shards import describe_file
from data_prep.corpus.verify import verify
from gpt.errors import ConfigError
from gpt.token_files.corpus import check_tokenizer, open_tokens
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.byte_pair import printable_bytes
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")

RECIPE = """
[input]
paths = ["{folder}/texts.jsonl"]
[output]
folder = "{folder}/corpus"
work = "{folder}/work"
validation_fraction = 0.2
shard_tokens = 90_000
[language]
enabled = false
[quality]
rules = []
[dedup_minhash]
enabled = false
[tokenizer]
vocab_size = 400
train_bytes = 100_000
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, prose) -> Path:
    """A folder with recipe.toml, work and corpus: train in three files, validation in one."""
    folder = tmp_path_factory.mktemp("verify")
    lines = [json.dumps({"id": f"d{n}", "text": prose(n, 60)}) for n in range(150)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    assert main(["prepare", str(folder / "recipe.toml"), "--workers", "1"]) == 0
    return folder


@pytest.fixture
def corpus(made, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made / "corpus", tmp_path / "corpus")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def faults(folder, capsys) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["prepare", "verify", str(folder), "--workers", "2"])
    return status, capsys.readouterr().out


def test_a_complete_corpus_in_several_files_has_no_fault(made, capsys):
    status, shown = faults(made / "corpus", capsys)
    assert status == 0, shown
    description = json.loads((made / "corpus" / CORPUS_FILE).read_text())
    assert f"whole; {description['tokens']:,} tokens, 150 documents" in shown
    shards = description["splits"]["training"]["shards"]
    assert [shard["name"] for shard in shards] == [f"train-{n:05d}-of-00003" for n in range(3)]
    assert [shard["name"] for shard in description["splits"]["validation"]["shards"]] == ["validation"]
    tokens = open_tokens(made / "corpus/train")
    assert tokens.n_tokens == description["splits"]["training"]["tokens"] == sum(shard["tokens"] for shard in shards)
    assert open_tokens(made / "corpus" / shards[1]["name"]).n_tokens == shards[1]["tokens"]


def test_another_number_of_files_has_the_same_tokens(made, tmp_path, capsys):
    """One file, then three again: the tokens are the same, and no file of the corpus before is left."""
    again = shutil.copytree(made, tmp_path / "made", symlinks=True)
    (again / "recipe.toml").write_text(RECIPE.format(folder=again))
    before = TokenFile(made / "corpus/train")
    words = ["prepare", str(again / "recipe.toml"), "--workers", "1", "--output.shard_tokens"]
    for shard_tokens, n_files in ((10_000_000, 1), (90_000, 3)):
        assert main([*words, str(shard_tokens)]) == 0
        assert len(list((again / "corpus").glob("train*.bin"))) == n_files
        after = open_tokens(again / "corpus/train")
        np.testing.assert_array_equal(before.read(0, before.n_tokens), after.read(0, after.n_tokens))
    assert main([*words, "4000"]) == 2
    assert "output.shard_tokens = 4,000 is invalid: it makes" in capsys.readouterr().err


def test_a_tokenizer_of_two_files_is_published_with_the_corpus(made, tmp_path, capsys):
    pytest.importorskip("tiktoken", reason="the extra 'data' is not installed")
    pair = tmp_path / "pair"
    pair.mkdir()
    names = {name: i for i, name in enumerate([*printable_bytes(), "th", "the", "<|endoftext|>"])}
    (pair / "my-encoder.json").write_text(json.dumps(names))
    (pair / "my-vocab.bpe").write_text("#version: 0.2\nt h\nth e\n")
    again = shutil.copytree(made, tmp_path / "made")
    recipe = RECIPE.format(folder=again).replace("vocab_size = 400", f'path = "{pair}"')
    (again / "recipe.toml").write_text(recipe)
    assert main(["prepare", str(again / "recipe.toml"), "--workers", "1", "--output.shard_tokens", "200_000"]) == 0
    corpus = again / "corpus"
    tokenizer = load_tokenizer(corpus)
    assert tokenizer.fingerprint == load_tokenizer(pair).fingerprint
    files = sorted(path.name for path in corpus.iterdir() if not path.name.startswith(("train", "validation")))
    assert files == [CORPUS_FILE, "encoder.json", "vocab.bpe"], "the other tokenizer is removed"
    tokens = open_tokens(corpus / "validation")
    text = tokenizer.decode(tokens.read(0, tokens.document_start(1)).tolist())
    assert text in {json.loads(line)["text"] for line in (made / "texts.jsonl").read_text().splitlines()}
    assert faults(corpus, capsys)[0] == 0
    flip(corpus / "encoder.json", 3)
    assert "encoder.json: sha256" in faults(corpus, capsys)[1]


BIN, IDX = "train-00001-of-00003.bin", "train-00001-of-00003.idx"
SUMS = "train-00001-of-00003.sums"
FAULTS = {
    "a bit at the end": (lambda c: flip(c / BIN, -1), rf"{BIN}: sha256", rf"{BIN}: its content differs"),
    "a bit between samples": (lambda c: flip(c / BIN, 7000), rf"{BIN}: sha256", None),
    "a bit of the index": (lambda c: flip(c / IDX, 40), rf"{IDX}: sha256", rf"{IDX}: its content differs"),
    "a byte too few": (
        lambda c: (c / BIN).write_bytes((c / BIN).read_bytes()[:-1]),
        rf"{BIN}: [\d,]+ bytes, expected",
        rf"{BIN}: [\d,]+ bytes, but corpus\.json says",
    ),
    "a bit of the checksums": (lambda c: flip(c / SUMS, 60), rf"{SUMS}: sha256", None),
    "no checksums": (lambda c: (c / SUMS).unlink(), rf"{SUMS}: No such file", None),
    "a file gone": (lambda c: (c / IDX).unlink(), rf"{IDX}: No such file", rf"{IDX}: no such file"),
    "two exchanged": (
        lambda c: [
            (c / f"validation{s}").write_bytes((c / f"train-00000-of-00003{s}").read_bytes()) for s in (".bin", ".idx")
        ],
        r"validation\.bin: [\d,]+ bytes, expected",
        None,  # the training files are not affected
    ),
    "a file too many": (
        lambda c: [shutil.copy(c / f"validation{s}", c / f"train{s}") for s in (".bin", ".idx")],
        r"train\.bin: not a file of this corpus",
        r"train\.bin and train-00000-of-00003 are token files of two corpora",
    ),
    "the description": (
        lambda c: (c / CORPUS_FILE).write_text((c / CORPUS_FILE).read_text().replace('"seed": 0', '"seed": 1')),
        r"corpus\.json: its own sha256",
        None,
    ),
    "the tokenizer": (lambda c: flip(c / "tokenizer.model", 2000), r"tokenizer\.model: sha256", None),
    "a pipe as tokenizer": (lambda c: pipe(c / "tokenizer.model"), r"tokenizer\.model is a named pipe", None),
    "a pipe as checksums": (
        lambda c: pipe(c / SUMS),
        rf"{SUMS} is a named pipe, .*; `triaxial prepare checksum",
        rf"{SUMS} is a named pipe",
    ),
    "the tokenizer gone": (lambda c: (c / "tokenizer.model").unlink(), r"tokenizer\.model: No such file", None),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_named(corpus, capsys, case):
    damage, in_full, when_opened = FAULTS[case]
    damage(corpus)
    status, shown = faults(corpus, capsys)
    assert status == 1
    assert re.search(in_full, shown), shown
    if case == "a bit between samples":
        assert re.search(rf"{BIN}: bytes 4,096 to 8,191 have the checksum \w+, but", shown), "where in the file"
    if when_opened:
        with pytest.raises(ConfigError, match=when_opened):
            open_tokens(corpus / "train")
    elif case == "two exchanged":
        with pytest.raises(ConfigError, match=r"validation\.bin: [\d,]+ bytes, but"):
            open_tokens(corpus / "validation")
    else:
        assert open_tokens(corpus / "train").n_documents == TokenFile(corpus / "train").n_documents


def test_faults_that_digests_miss_are_named(corpus, capsys):
    """Files whose digests match corpus.json, but whose content is invalid."""
    description = json.loads((corpus / CORPUS_FILE).read_text())
    with TokenFileWriter(corpus / "validation", vocab_size=65_000) as writer:
        writer.add_document([5, 400, 6])
    shard = description["splits"]["validation"]["shards"][0]
    shard |= {suffix: describe_file(corpus / f"validation.{suffix}") for suffix in ("bin", "idx", "sums")}
    description["sha256"] = seal(description)
    (corpus / CORPUS_FILE).write_text(json.dumps(description))
    status, shown = faults(corpus, capsys)
    assert status == 1
    assert "validation.bin: has ids from 0 to 400, but the vocabulary has 0 to 399" in shown
    assert f"validation.idx: 3 tokens, expected {shard['tokens']:,}" in shown
    assert f"validation.idx: 1 documents, expected {shard['documents']:,}" in shown
    assert "validation.bin: its last token is not the end-of-document token, 1" in shown
    assert "4 faults" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("splits"), "splits is missing"),
        (lambda d: d.update(splits=[]), r"splits = \[\] is no object of keys"),
        (lambda d: d["splits"]["training"]["shards"][0].pop("bin"), r"shards\[0\]\.bin is missing"),
        (lambda d: d["splits"]["training"]["shards"][0].update(name="../x"), r"name = '\.\./x' is no name of a file"),
        (lambda d: d.update(tokenizer=None), "tokenizer = None is no object of keys"),
        (lambda d: d["tokenizer"]["files"].update({"/etc/passwd": ""}), "'/etc/passwd' is no name of a file"),
        (lambda d: d.update(vocab_size="x"), "vocab_size = 'x' is no whole number"),
        (lambda d: d.update(recipe=json.loads("[" * 500 + "]" * 500)), "is nested more than 20 times"),
    ],
)
def test_a_crafted_description_with_a_right_digest_is_one_fault(corpus, capsys, change, message):
    description = json.loads((corpus / CORPUS_FILE).read_text())
    change(description)
    description["sha256"] = seal(description)
    (corpus / CORPUS_FILE).write_text(json.dumps(description))
    status, shown = faults(corpus, capsys)
    assert status == 1
    assert re.search(message, " ".join(shown.split())), shown


def test_a_flipped_bit_anywhere_in_the_description_is_found(corpus, capsys):
    original = (corpus / CORPUS_FILE).read_bytes()
    for position in range(0, len(original), 211):
        flip(corpus / CORPUS_FILE, position)
        status, shown = faults(corpus, capsys)
        if json.dumps(_parsed(corpus / CORPUS_FILE)) == json.dumps(json.loads(original)):
            continue  # whitespace between two values
        assert (status, "corpus.json" in shown) == (1, True), position
        (corpus / CORPUS_FILE).write_bytes(original)


def _parsed(path):
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_folders_that_cannot_be_verified(corpus, tmp_path, capsys):
    (tmp_path / CORPUS_FILE).write_text("[]")
    assert main(["prepare", "verify", str(tmp_path)]) == 1
    assert "damaged (not a JSON object)" in capsys.readouterr().out
    (tmp_path / CORPUS_FILE).unlink()
    assert main(["prepare", "verify", str(tmp_path)]) == 2
    assert "corpus.json: no such file" in capsys.readouterr().err
    (corpus / CORPUS_FILE).write_text(json.dumps({"format": "triaxial-corpus", "version": 1}))
    assert main(["prepare", "verify", str(corpus)]) == 2
    assert "version 1 lacks the facts to verify" in capsys.readouterr().err


def test_another_tokenizer_than_the_corpus_has_is_an_error(made, tmp_path):
    train_sentencepiece(iter(["other words " * 9, "and more of them"]), tmp_path / "other.model", vocab_size=300)
    other, own = load_tokenizer(tmp_path / "other.model"), load_tokenizer(made / "corpus")
    check_tokenizer(made / "corpus/train", path=made / "corpus", fingerprint=own.fingerprint)
    check_tokenizer(tmp_path / "elsewhere/train", path=made / "corpus", fingerprint="of no corpus")
    for name in ("train", "validation", "train-00001-of-00003"):
        with pytest.raises(ConfigError) as error:
            check_tokenizer(made / "corpus" / name, path=tmp_path / "other.model", fingerprint=other.fingerprint)
        for part in (
            "other.model",
            other.fingerprint[:16],
            f"corpus/{name}",
            own.fingerprint[:16],
            "corpus/tokenizer.model'",
        ):
            assert part in str(error.value)


def test_token_files_open_without_a_description(corpus):
    flip(corpus / BIN, 0)
    (corpus / CORPUS_FILE).unlink()
    assert open_tokens(corpus / "train").n_documents > 0
    (corpus / CORPUS_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"corpus\.json is damaged"):
        open_tokens(corpus / "train")
    (corpus / CORPUS_FILE).write_text(json.dumps({"format": "triaxial-corpus", "splits": {"x": 3}}))
    with pytest.raises(ConfigError, match=r"corpus\.json is damaged"):
        open_tokens(corpus / "train")
    part = {"x": {"prefix": "train", "shards": [{"name": "train-00000-of-00003"}]}}
    for version in (2, "two"):
        about = {"format": "triaxial-corpus", "version": version, "splits": part}
        (corpus / CORPUS_FILE).write_text(json.dumps(about | {"tokenizer": {"file": "x", "fingerprint": "y"}}))
        with pytest.raises(ConfigError, match=r"corpus\.json is damaged"):
            open_tokens(corpus / "train")
    (corpus / CORPUS_FILE).write_text(json.dumps({"name": "some other tool's"}))
    assert open_tokens(corpus / "train").n_documents > 0


def test_the_bytes_that_are_read_are_reported_to_the_last(made):
    """Those of the token files, twice where they have block sums."""
    seen: list[tuple[float, float]] = []
    assert not verify(made / "corpus", n_threads=2, advance=lambda *pair: seen.append(pair)).faults
    files = [path for path in (made / "corpus").iterdir() if path.suffix in (".bin", ".idx")]
    total = 2 * sum(path.stat().st_size for path in files)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
