"""Token files are compared with the corpus.json in their folder when they are opened."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.corpus import check_tokenizer, describe_corpus, open_tokens
from gpt.token_files.files import TokenFileWriter, sampled_digest


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A split of two shards, and its description."""
    shards: list[dict[str, Any]] = []
    for number in range(2):
        prefix = tmp_path / f"train-{number:05d}-of-00002"
        with TokenFileWriter(prefix, vocab_size=100) as writer:
            writer.add_document(np.arange(50))
        (tmp_path / f"{prefix.name}.sums").unlink()  # which would find the damage later, at a read
        files = {suffix: Path(f"{prefix}.{suffix}") for suffix in ("bin", "idx")}
        facts = {k: {"bytes": f.stat().st_size, "sampled_sha256": sampled_digest(f)} for k, f in files.items()}
        shards.append({"name": prefix.name, **facts})
    description = {
        "format": "triaxial-corpus",
        "version": 2,
        "tokenizer": {"file": "t.model", "fingerprint": "ab" * 32},
        "splits": {"training": {"prefix": "train", "shards": shards}},
    }
    (tmp_path / "corpus.json").write_text(json.dumps(description))
    return tmp_path


def test_a_whole_split_and_one_shard_open(corpus: Path) -> None:
    assert open_tokens(corpus / "train").n_tokens == 100
    assert open_tokens(corpus / "train-00001-of-00002").n_tokens == 50
    assert describe_corpus(corpus / "other") is None
    assert describe_corpus(corpus / "gone" / "train") is None


def rewrite(folder: Path, key: str, value: object) -> None:
    description = json.loads((folder / "corpus.json").read_text())
    description["splits"]["training"]["shards"][0]["bin"][key] = value
    (folder / "corpus.json").write_text(json.dumps(description))


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def describe_chat(corpus: Path, chat: Any) -> None:
    path = corpus / "corpus.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat": chat}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: flip(c / "train-00001-of-00002.bin", 7), r"1-of-00002\.bin: its content differs from corpus\.json"),
        (lambda c: (c / "train-00001-of-00002.idx").write_bytes(b""), r"0 bytes, but corpus\.json says"),
        (lambda c: (c / "corpus.json").write_text("{"), r"corpus\.json is damaged"),
        (
            lambda c: rewrite(c, "bytes", "many"),
            r"the shard 'train-00000-of-00002'\.bin\.bytes = 'many' is no",
        ),
        (lambda c: rewrite(c, "bytes", float("inf")), r"\.bin\.bytes = inf is no whole number"),
        (lambda c: rewrite(c, "sampled_sha256", []), r"\.bin\.sampled_sha256 = \[\] is no text"),
        (
            lambda c: link_to_itself(c / "train-00000-of-00002.bin"),
            r"00002\.bin cannot be read: Too many",
        ),
        (lambda c: describe_chat(c, {"end_ids": ["x"]}), r"chat\.end_ids\[0\] = 'x' is no whole number"),
        (lambda c: describe_chat(c, [1]), r"chat = \[1\] is no object of keys"),
        (lambda c: link_to_itself(c / "corpus.json"), r"corpus\.json is a symbolic link to itself"),
    ],
)
def test_damage_is_found(corpus: Path, spoil: Any, words: str) -> None:
    spoil(corpus)
    with pytest.raises(ConfigError, match=words):
        open_tokens(corpus / "train")


def test_another_tokenizer_is_refused(corpus: Path) -> None:
    check_tokenizer(corpus / "train", path=Path("x.model"), fingerprint="ab" * 32)
    with pytest.raises(ConfigError, match=r"data\.tokenizer = 'x\.model' .* is invalid: .* made with t\.model .* Use "):
        check_tokenizer(corpus / "train", path=Path("x.model"), fingerprint="cd" * 32)
