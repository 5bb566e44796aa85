"""Publish a corpus folder: the token files of both splits, the tokenizer and corpus.json.

While files are replaced, corpus.json is removed first and written last. A folder with a corpus.json is therefore
complete.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.execution.files import disk_errors, lock_folder, temporary_for
from gpt.errors import ConfigError
from gpt.files.atomic import sync_file, sync_folder
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes, read_text

CORPUS_FILE = "corpus.json"
VERSION = 2  # version 1 had one file per split and no sampled digests
SPLITS = {"training": "train", "validation": "validation"}  # split: prefix of its token files
# Files that only a corpus has, so an older corpus's can be removed.
_NAMES = "|".join(SPLITS.values())
TOKEN_FILE = re.compile(rf"({_NAMES})(_learned|_marks|_labels)?(-\d{{5,}}-of-\d{{5,}})?\.(bin|idx|sums)")
SIDE_FILE = re.compile(rf"({_NAMES})_rankings\.jsonl")


def shard_names(prefix: str, n_files: int) -> list[str]:
    """Return the names of a split's token files without their endings; a single file has the prefix as its name."""
    return [prefix] if n_files == 1 else [f"{prefix}-{number:05d}-of-{n_files:05d}" for number in range(n_files)]


def entropy_nats(counts: Any) -> float:
    """Compute the entropy in nats of the distribution that the counts describe; 0 for no counts."""
    present = np.asarray(counts)[np.asarray(counts) > 0].astype(np.float64)
    shares = present / present.sum()
    return 0.0 if not len(shares) else math.fsum((-shares * np.log(shares)).tolist())


def publish(folder: Path, files: Mapping[str, Path], description: Mapping[str, Any]) -> None:
    """Put `files` (name: current path) and corpus.json into the corpus folder, all or nothing.

    The files are hard links if the file system allows it, so a corpus takes no second copy. Nothing is done if the
    folder is as it should be. Token files and tokenizer of an earlier corpus are removed, so that they cannot be
    mistaken for this one's. ConfigError: the disk refuses, or another run is writing here.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            if not _is_published(folder, files, text):
                _replace_files(folder, files, text)


def _replace_files(folder: Path, files: Mapping[str, Path], text: str) -> None:
    corpus_path = folder / CORPUS_FILE
    for path in folder.glob(".tmp-*"):  # left by a run that was killed
        if path.is_symlink() or not path.is_dir():
            path.unlink()
    temporary = {name: temporary_for(folder / name) for name in (*files, CORPUS_FILE)}
    try:
        for name, source in files.items():
            _link_or_copy(source, temporary[name])
        with open(temporary[CORPUS_FILE], "x", encoding="utf-8") as file:
            file.write(text)
            sync_file(file)
        old_names = _token_files(folder) | _old_tokenizer(corpus_path)
        corpus_path.unlink(missing_ok=True)
        sync_folder(folder)  # the removal must be on the disk before any file changes
        for name in old_names - files.keys():
            (folder / name).unlink(missing_ok=True)
        for name in files:
            os.replace(temporary[name], folder / name)
        sync_folder(folder)
        os.replace(temporary[CORPUS_FILE], corpus_path)
        sync_folder(folder)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def read_corpus(folder: Path) -> dict[str, Any]:
    """Read the description of a corpus. ConfigError: there is none, or it is damaged."""
    path = folder / CORPUS_FILE
    try:
        description: dict[str, Any] = decode_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file. Run `triaxial prepare` to make the corpus") from None
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}). Run `triaxial prepare` again") from None
    if not isinstance(description, dict):
        raise ConfigError(f"{path}: damaged (not a JSON object). Run `triaxial prepare` again")
    return description


def describe(
    splits: Mapping[str, Mapping[str, Any]],
    tokenizer: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the content of corpus.json. It depends on recipe, input names and libraries, not on machine or workers."""
    description = {
        "format": "triaxial-corpus",
        "version": VERSION,
        "vocab_size": tokenizer["vocab_size"],
        "tokens": sum(split["tokens"] for split in splits.values()),
        "documents": sum(split["documents"] for split in splits.values()),
        "unigram_entropy_nats": splits["validation"]["unigram_entropy_nats"],
        "tokenizer": dict(tokenizer),
        "splits": {name: {"prefix": SPLITS[name], **facts} for name, facts in splits.items()},
        "steps": list(steps),
        "recipe": dict(recipe),
        "versions": dict(versions),
        **more,
    }
    return {**description, "sha256": seal(description)}


def seal(description: Mapping[str, Any]) -> str:
    """Compute the sha256 of a description without its own `sha256`."""
    rest = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _token_files(folder: Path) -> set[str]:
    names = (path.name for path in folder.iterdir())
    return {name for name in names if TOKEN_FILE.fullmatch(name) or SIDE_FILE.fullmatch(name)}


def _old_tokenizer(corpus_path: Path) -> set[str]:
    try:
        about = decode_json(read_bytes(corpus_path))["tokenizer"]
        names = about.get("files", {about["file"]: None})
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in names if name == Path(name).name}


def _is_published(folder: Path, files: Mapping[str, Path], text: str) -> bool:
    """Return whether corpus.json has this text already, and every file is the same one or has the same digest."""
    try:
        if read_bytes(folder / CORPUS_FILE) != text.encode():
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
        with open(source, "rb") as original, open(target, "xb") as file:
            shutil.copyfileobj(original, file, 1 << 20)
            sync_file(file)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
