"""Copies a finished corpus folder to a URL, corpus.json last; never takes anything but that file away there."""

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.corpus.corpus import CORPUS_FILE
from data_prep.readers.remote_files import open_system, with_retries
from gpt.errors import ConfigError


def url_of(folder: Path) -> str | None:
    """The URL that a recipe's folder is (`Path` has made one slash of its two), or None for a local folder."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(folder))
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


def check_target(url: str) -> None:
    """ConfigError when nothing can be written behind this URL: now, and not when the corpus is made."""
    system, path = open_system(url)
    if url.startswith(("http://", "https://")):
        raise ConfigError(f"output.folder = {url}: files cannot be written over http; use a storage's own protocol")
    with_retries(url, lambda: system.exists(path))


def upload_corpus(folder: Path, url: str) -> None:
    """Make `url` hold the files of `folder`; nothing is sent when its corpus.json says that it does already."""
    system, path = open_system(url)
    base = str(system._strip_protocol(path)).rstrip("/")
    text = (folder / CORPUS_FILE).read_bytes()
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    names.remove(CORPUS_FILE)
    if _read(system, f"{base}/{CORPUS_FILE}", url) == text and all(
        _size(system, f"{base}/{name}", url) == (folder / name).stat().st_size for name in names
    ):
        return
    with_retries(url, partial(_remove, system, f"{base}/{CORPUS_FILE}"))
    with_retries(url, lambda: system.makedirs(base, exist_ok=True))
    for name in (*names, CORPUS_FILE):  # a folder with a corpus.json is whole
        with_retries(f"{url}/{name}", partial(_put, system, folder / name, f"{base}/{name}"))


def _put(system: Any, source: Path, target: str) -> None:
    system.put_file(str(source), target)
    system.invalidate_cache()
    n_bytes, sent = source.stat().st_size, system.info(target)["size"]
    if sent != n_bytes:
        raise EOFError(f"{sent} of {n_bytes} bytes arrived")


def _read(system: Any, path: str, url: str) -> bytes | None:
    def read() -> bytes | None:
        try:
            return bytes(system.cat_file(path))
        except FileNotFoundError:
            return None

    return with_retries(url, read)


def _size(system: Any, path: str, url: str) -> int | None:
    def size() -> int | None:
        try:
            return int(system.info(path)["size"])
        except FileNotFoundError:
            return None

    return with_retries(url, size)


def _remove(system: Any, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.rm_file(path)
    system.invalidate_cache()
