"""Expand folders and lists of paths, ask for all remote inputs in parallel, and keep the answers for plans."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.documents.records import decode_utf8
from data_prep.readers.compressed import read_lines
from data_prep.readers.remote_files import RemoteFile, find_remote, is_url, open_system, with_retries
from data_prep.readers.unpackers import Broken
from gpt.errors import ConfigError, file_error
from gpt.files.json_text import decode_json

ANSWERS = "remote_files.json"  # in the work folder
_CORPUS_FILE = "corpus.json"
_PARALLEL = 32  # requests at a time; a site of many files answers each in 10 to 100 ms
_MAX_PATH_BYTES = 1 << 16

Answers = Mapping[str, Sequence[RemoteFile]]  # keyed by the URL or pattern of the recipe


def files_in(folder: Path, *, without: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield the regular files below a folder, sorted in each one. ConfigError: a folder below it cannot be read.

    Hidden files are left out, and what is below `without`, a folder that holds a corpus, or a link to a folder.
    """
    for name, _, files in _walk(folder, without):
        for file in sorted(files):
            path = Path(name) / file
            if file[0] != "." and path.is_file():
                yield path


def linked_folders(folder: Path, *, without: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield the links to folders below a folder, which `files_in` does not follow: they may lead anywhere."""
    for name, folders, _ in _walk(folder, without):
        yield from (path for inner in folders if (path := Path(name) / inner).is_symlink())


def _walk(folder: Path, without: Sequence[Path]) -> Iterator[tuple[str, list[str], list[str]]]:
    leave_out = {path.expanduser().resolve() for path in without}
    for name, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(
            inner for inner in folders if inner[0] != "." and (Path(name) / inner).resolve() not in leave_out
        )
        if _CORPUS_FILE in files and any(file.endswith(".idx") for file in files):
            folders.clear()  # a corpus that `triaxial prepare` made; a person's own file may have the name too
        else:
            yield name, folders, files


def _refuse(error: OSError) -> None:
    """Without it, os.walk would leave out a folder that cannot be read, without a word."""
    raise file_error(error, f"input.paths: {error.filename} cannot be read: {(error.strerror or '').lower()}")


def expand_lists(lists: Sequence[str], base: str) -> list[str]:
    """Return the paths in files with one path a line, each with `base` before it. ConfigError: a list has none."""
    return [f"{base}{line}" for name in lists for line in _lines(name)]


def ask_all(patterns: Sequence[str], known: Answers) -> list[RemoteFile]:
    """Return the files that each URL or pattern matches; only unknown ones are asked for. Errors: as `find_remote`."""
    unknown = [pattern for pattern in dict.fromkeys(patterns) if pattern not in known]
    pool = ThreadPoolExecutor(_PARALLEL)
    try:
        asked = dict(zip(unknown, pool.map(find_remote, unknown), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    found = [(pattern, file) for pattern in patterns for file in asked.get(pattern, known.get(pattern, ()))]
    return [replace(file, pattern=pattern) for pattern, file in found]


def encode_answers(files: Sequence[Path | RemoteFile]) -> str:
    """Encode the remote files among the inputs, for `read_answers`."""
    return json.dumps([asdict(file) for file in files if isinstance(file, RemoteFile)])


def read_answers(folder: Path) -> Answers:
    """Read the answers that the last run in a work folder got; none if it has no such file."""
    known: dict[str, list[RemoteFile]] = {}
    try:
        for facts in decode_json((folder / ANSWERS).read_bytes()):
            file = RemoteFile(**facts)
            known.setdefault(file.pattern, []).append(file)
    except (OSError, ValueError, TypeError):  # of another version, or damaged: they are asked again
        return {}
    return known


def _lines(name: str) -> list[str]:
    try:
        if is_url(name):
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / urlsplit(name).path.rpartition("/")[2]
                system, path = open_system(name)
                with_retries(name, partial(system.get_file, path, str(copy)))
                found = list(read_lines(copy, max_bytes=_MAX_PATH_BYTES))
        else:
            found = list(read_lines(Path(name).expanduser(), max_bytes=_MAX_PATH_BYTES))
    except OSError as error:
        raise file_error(error, f"input.path_lists: '{name}' cannot be read ({error})") from None
    except Broken as error:
        raise ConfigError(f"input.path_lists: '{name}' cannot be read ({error})") from None
    lines = [None if line is None else decode_utf8(line) for line in found]
    paths = [line.strip() for line in lines if line is not None and line.strip()]
    if not paths or None in lines:
        raise ConfigError(f"input.path_lists: '{name}' is invalid: must have one path a line")
    return paths
