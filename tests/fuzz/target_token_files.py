"""Token files, with and without checksums, one pair and a set of shards with its corpus.json."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from fuzzing import Target

from gpt.data.config import DataConfig
from gpt.data.dataset import TrainingData
from gpt.token_files.corpus import check_tokenizer, open_tokens
from gpt.token_files.files import TokenFileWriter, compare_sums, make_sums, sampled_digest
from launch.config.recipe import build

DOCUMENTS = [[1, 2, 3, 0], [4] * 40 + [0], [0], [5, 6] * 20 + [0]]
NAMES = ("train-00000-of-00002", "train-00001-of-00002")


def write(folder: Path, *, sums: bool, names: tuple[str, ...]) -> None:
    for name in names:
        with TokenFileWriter(folder / name, vocab_size=300) as file:
            for ids in DOCUMENTS:
                file.add_document(np.array(ids))
        if not sums:
            (folder / f"{name}.sums").unlink()
    if len(names) > 1:
        shards = [
            {"name": name, "bin": about(folder / f"{name}.bin"), "idx": about(folder / f"{name}.idx")} for name in names
        ]
        tokenizer = {"file": "x.model", "fingerprint": "f" * 64}
        description = {"format": "triaxial-corpus", "version": 2, "tokenizer": tokenizer}
        description["splits"] = {"training": {"prefix": "train", "shards": shards}}
        (folder / "corpus.json").write_text(json.dumps(description))


def about(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sampled_sha256": sampled_digest(path)}


def read(folder: Path) -> None:
    """As `triaxial train` and the audits read a corpus, by each rule of sampling."""
    prefix = folder / "train"
    check_tokenizer(prefix, path=Path("x.model"), fingerprint="f" * 64)
    tokens = open_tokens(prefix)
    tokens.read(0, tokens.n_tokens)
    for position in range(0, tokens.n_tokens, 7):
        document, _ = tokens.document_at(position)
        tokens.document_start(document + 1)
    tokens.borders(0, tokens.n_tokens)
    for sampling in ("window", "document", "packed"):
        words = {"tokenizer": "x.model", "seq_len": 16, "sampling": sampling, "document_mask": True}
        data = TrainingData(data_config(folder, words), seed=1, vocab_size=300)
        data.read(np.arange(8))


def verify(folder: Path) -> None:
    """As `triaxial prepare checksum`."""
    prefix = folder / "train"
    compare_sums(prefix)
    make_sums(prefix)


def data_config(folder: Path, words: dict[str, object]) -> DataConfig:
    return build(DataConfig, {**words, "train": [{"path": str(folder / "train")}]}, where="data")


one = ("train",)
TARGETS = (
    Target("token_files", partial(write, sums=True, names=one), read, cases=60),
    Target("token_files_unchecked", partial(write, sums=False, names=one), read, cases=80),
    Target("token_files_set", partial(write, sums=False, names=NAMES), read, cases=60),
    Target("token_files_sums", partial(write, sums=True, names=one), verify, cases=40),
)
