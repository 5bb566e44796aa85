"""The last step: token ids of all shards into the corpus folder; a corpus is whole when its corpus.json is there.

The folder holds train.bin/.idx, validation.bin/.idx, the tokenizer and corpus.json, which is taken away first and put
back last while the files are exchanged.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.engine import Result, Stage
from data_prep.files import disk_errors, read_array, sync_file, sync_folder
from gpt.errors import ConfigError
from gpt.token_files import TokenFileWriter, token_dtype

CORPUS_FILE = "corpus.json"
SPLITS = {"training": "train", "validation": "validation"}  # split: prefix of its token files


@dataclass(frozen=True)
class MergeTask:
    """Which split to gather."""

    validation: bool
    vocab_size: int


def merge_split(config: MergeTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: (.tokens and rows of every shard in turn) to one split's .bin and .idx, in shuffled order.

    Facts: tokens, documents, and the entropy of the tokens' frequencies in nats, which is the loss of the best model
    that ignores context. Memory: some 100 bytes a document; token ids are read from the mapped shards.
    """
    token_paths, row_paths = inputs[0::2], inputs[1::2]
    dtype = token_dtype(config.vocab_size)
    tables = [read_array(path) for path in row_paths]
    shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    rows = np.concatenate(tables)
    mine = rows["validation"] == config.validation
    rows, shard = rows[mine], shard[mine]
    order = np.lexsort((rows["text"], rows["order"]))
    sources = [
        np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype) for path in token_paths
    ]
    prefix = outputs[0].with_suffix("")
    with TokenFileWriter(prefix, vocab_size=config.vocab_size) as writer:
        for row, source in zip(rows[order], shard[order].tolist(), strict=True):
            writer.add_document(sources[source][row["start"] : row["stop"]])
    facts = {
        "tokens": writer.n_tokens,
        "documents": writer.n_documents,
        "unigram_entropy_nats": entropy_nats(_count_tokens(outputs[0], dtype, config.vocab_size)),
        "bin_sha256": _sha256(outputs[0]),
        "idx_sha256": _sha256(outputs[1]),
    }
    return Result([], facts)


def _count_tokens(path: Path, dtype: Any, vocab_size: int) -> Any:
    counts = np.zeros(vocab_size, dtype=np.int64)
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            counts += np.bincount(np.frombuffer(block, dtype), minlength=vocab_size)
    return counts


def entropy_nats(counts: Any) -> float:
    """Entropy of the distribution that the counts describe; 0 for no counts."""
    present = np.asarray(counts)[np.asarray(counts) > 0].astype(np.float64)
    shares = present / present.sum()
    return 0.0 if not len(shares) else math.fsum((-shares * np.log(shares)).tolist())


def publish(folder: Path, files: Mapping[str, Path], description: Mapping[str, Any]) -> None:
    """Put `files` (name: where it lies now) and corpus.json into the corpus folder, all or nothing.

    Links where the file system allows it, so a corpus takes no second copy; does nothing when all is as it should be.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    corpus_path = folder / CORPUS_FILE
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if _is_published(folder, files, text):
            return
        for left_over in folder.glob(".tmp-*"):  # by a run that was killed here
            left_over.unlink()
        temporary = {name: folder / f".tmp-{os.getpid()}-{name}" for name in (*files, CORPUS_FILE)}
        try:
            for name, source in files.items():
                _link_or_copy(source, temporary[name])
            with open(temporary[CORPUS_FILE], "w", encoding="utf-8") as file:
                file.write(text)
                sync_file(file)
            corpus_path.unlink(missing_ok=True)
            for name, path in temporary.items():  # corpus.json is the last
                os.replace(path, folder / name)
            sync_folder(folder)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)


def read_corpus(folder: Path) -> dict[str, Any]:
    """The description of a corpus, or ConfigError when there is none."""
    path = folder / CORPUS_FILE
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run `triaxial prepare` to make the corpus") from None
    return description


def describe(
    splits: Mapping[str, Mapping[str, Any]],
    tokenizer: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What corpus.json says: nothing that differs when the same corpus is made again elsewhere, by other workers."""
    return {
        "format": "triaxial-corpus",
        "version": 1,
        "vocab_size": tokenizer["vocab_size"],
        "tokens": sum(split["tokens"] for split in splits.values()),
        "documents": sum(split["documents"] for split in splits.values()),
        "unigram_entropy_nats": splits["validation"]["unigram_entropy_nats"],
        "tokenizer": dict(tokenizer),
        "splits": {name: {"prefix": SPLITS[name], **facts} for name, facts in splits.items()},
        "steps": list(steps),
        "recipe": dict(recipe),
        "versions": dict(versions),
    }


def _is_published(folder: Path, files: Mapping[str, Path], text: str) -> bool:
    """Whether corpus.json says the same already and every file is the very one, or one of the same size and digest."""
    try:
        if (folder / CORPUS_FILE).read_text(encoding="utf-8") != text:
            return False
        return all(
            os.path.samefile(folder / name, source) or _sha256(folder / name) == _sha256(source)
            for name, source in files.items()
        )
    except FileNotFoundError:
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            sync_file(file)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MERGE = Stage("write_corpus", merge_split, ("corpus", "files", "gpt.token_files"), ("numpy",))
