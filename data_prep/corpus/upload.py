"""Copy a finished corpus folder to a URL, corpus.json last. At the URL, no other file is ever removed."""

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.corpus.corpus import CORPUS_FILE
from data_prep.readers.remote_files import open_system, with_retries
from gpt.errors import ConfigError


def url_of(folder: Path) -> str | None:
    """Return the URL if a recipe's folder is one (`Path` turns its two slashes into one); None for a local folder."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(folder))
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


def check_target(url: str) -> None:
    """Check that this URL can be written to, before the corpus is made. ConfigError: it cannot."""
    system, path = open_system(url)
    if url.startswith(("http://", "https://")):
        raise ConfigError(
            f"output.folder = {url} is invalid: cannot be written over http. Use the storage's protocol, such as s3"
        )
    with_retries(url, lambda: system.exists(path))


def upload_corpus(folder: Path, url: str) -> None:
    """Copy the files of `folder` to `url`; send nothing if the same corpus.json and files of these sizes are there."""
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
    for name in (*names, CORPUS_FILE):  # last, since it marks a complete folder
        with_retries(f"{url}/{name}", partial(_upload, system, folder / name, f"{base}/{name}"))


def _upload(system: Any, source: Path, target: str) -> None:
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
