"""Find input files behind URLs, through fsspec, and copy them here whole, one at a time, with checks.

A small local file, the *stub*, stands for a remote input. It holds the URL, and the size and version that the server
gives. Tasks depend on the stub: they run again when the remote file changes, and no download is needed to see a change.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from data_prep.execution.files import temporary_for
from gpt.errors import NO_ROOM, ConfigError, import_extra
from gpt.files.atomic import sync_file
from gpt.files.json_text import decode_json

T = TypeVar("T")
STUB_ENDING = ".remote"
RETRY_WAITS_S = (1.0, 4.0, 16.0, 64.0)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Names that file systems give to a version of a file's content; `created` is used only if there is no other.
_VERSIONS = (
    *("ETag", "blob_id", "etag", "Content-MD5", "Digest", "md5Hash", "md5", "crc32c", "CRC", "generation", "VersionId"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "modified"),
)
_SIGNATURE = re.compile(r"(^|[-_])(sig|signature|token|credential|secret|password|passwd|api_?key)$", re.IGNORECASE)
_STALL_LIMIT_S = 120  # seconds without a byte from a web server


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL. `n_bytes`: None if the server does not say. `version` changes with the content.

    `pattern`: the URL of the recipe that found it.
    """

    url: str
    n_bytes: int | None
    version: dict[str, str]
    pattern: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """File name, whose ending tells how to read it."""
        path = urlsplit(self.url).path if self.url.startswith(("http://", "https://")) else self.url.split("::")[0]
        return path.rpartition("/")[2]


def is_url(text: str) -> bool:
    """Return whether a path of a recipe is a URL."""
    return _URL.match(text) is not None


def find_remote(pattern: str, *, waits_s: Sequence[float] = RETRY_WAITS_S) -> list[RemoteFile]:
    """Return the files that a URL, with or without `*`, matches, or those below a folder, except hidden ones.

    ConfigError: no match, or no answer.
    """
    system, path = open_system(pattern)
    stripped = str(system._strip_protocol(path))
    head, chain, rest = pattern.partition("::")
    is_web = urlsplit(head).scheme in ("http", "https")
    prefix = head.removesuffix(stripped) if head.endswith(stripped) else f"{urlsplit(head).scheme}://"
    found = with_retries(pattern, partial(_list, system, stripped, web=is_web), waits_s=waits_s)
    files = []
    for name, info in sorted(found.items()):
        if info.get("type") == "directory":
            continue
        if info.get("size") is None:  # for example in a listing of links
            info = with_retries(name, partial(system.info, name))
        url = name if is_url(name) else f"{prefix}{name}"
        files.append(RemoteFile(url + chain + rest, info.get("size"), _version(info)))
    if not files:
        raise ConfigError(f"input.paths: no file matches '{pattern}'")
    return files


def _list(system: Any, path: str, *, web: bool) -> dict[str, dict[str, Any]]:
    """Return {path: facts} for a path or pattern; in a web address, a question mark is not part of a pattern."""
    if any(mark in path for mark in ("*[" if web else "*[?")):
        return dict(system.glob(path, detail=True))
    try:
        found = {path: system.info(path)}
    except FileNotFoundError:
        return {}
    if web or found[path].get("type") != "directory":
        return found
    inside = system.find(path, detail=True)
    return {name: info for name, info in inside.items() if "/." not in name.removeprefix(path)}


def write_stub(file: RemoteFile, folder: Path) -> Path:
    """Write the stub of a remote file in `folder`; the same file gives the same stub."""
    facts = {"url": file.url, "bytes": file.n_bytes, "version": file.version}
    data = json.dumps(facts, sort_keys=True).encode()
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}{STUB_ENDING}"
    if not path.exists() or path.read_bytes() != data:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_for(path)
        with open(temporary, "xb") as out:
            out.write(data)
            sync_file(out)
        os.replace(temporary, path)
    return path


def read_stub(path: Path) -> RemoteFile:
    """Read the remote file that a stub stands for."""
    facts = decode_json(path.read_bytes())
    return RemoteFile(facts["url"], facts["bytes"], facts["version"])


@contextmanager
def local_copy(path: Path, folder: Path, *, max_bytes: int, waits_s: Sequence[float] = RETRY_WAITS_S) -> Iterator[Path]:
    """Give `path` itself, or for a stub a copy of its remote file in `folder`, which is removed afterwards.

    The copy's name has the ending of the remote name. ConfigError: the file cannot be fetched, is larger than
    `max_bytes` or than the free space, or has changed since the stub was written.
    """
    if path.suffix != STUB_ENDING:
        yield path
        return
    file = read_stub(path)
    ending = re.sub(r"[^A-Za-z0-9.]", "", file.name[-16:])
    target = folder / f".tmp-{os.getpid()}-{path.stem}-{ending}"
    try:
        _copy(file, target, max_bytes=max_bytes, waits_s=waits_s)
        yield target
    finally:
        target.unlink(missing_ok=True)


def _copy(file: RemoteFile, target: Path, *, max_bytes: int, waits_s: Sequence[float]) -> None:
    system, path = open_system(file.url)
    _check_size(file, target.parent, file.n_bytes or 0, max_bytes)
    callbacks: Any = import_extra("fsspec.callbacks", extra="data")
    limit = max_bytes if file.n_bytes is None else file.n_bytes

    def watch(size: int | None, value: int, **_: object) -> None:
        if value > limit:
            raise ConfigError(f"{file.url}: more than the {limit} bytes that were expected")

    def fetch() -> None:
        system.get_file(path, str(target), callback=callbacks.Callback(hooks={"watch": watch}))
        n_bytes = target.stat().st_size
        if file.n_bytes is not None and n_bytes != file.n_bytes:
            raise EOFError(f"{n_bytes} of {file.n_bytes} bytes came")

    with_retries(file.url, fetch, waits_s=waits_s)
    system.invalidate_cache()
    now = _version(with_retries(file.url, lambda: system.info(path), waits_s=waits_s))
    common = now.keys() & file.version.keys()
    if common and all(
        now[key] != file.version[key] for key in common
    ):  # a single value may differ between the servers of a site
        raise ConfigError(f"{file.url} has changed since this run began. Run the same command again")


def _check_size(file: RemoteFile, folder: Path, n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise ConfigError(
            f"input.max_download_bytes = {max_bytes} is invalid: must be at least {n_bytes}, the size of {file.url}"
        )
    free_bytes = shutil.disk_usage(folder).free
    if n_bytes > free_bytes:
        raise ConfigError(
            f"{file.url} has {n_bytes} bytes, and {folder} has {free_bytes} bytes free. Free some space or choose "
            "another output.work"
        )


def open_system(url: str) -> tuple[Any, str]:
    """Return (fsspec's file system for a URL, the path in it). ConfigError names the package that a protocol needs."""
    fsspec: Any = import_extra("fsspec", extra="data")
    _check_no_secret(url)
    parts = urlsplit(url)
    options: dict[str, Any] = {}
    if parts.scheme in ("http", "https"):
        aiohttp: Any = _import_protocol("aiohttp", "http")
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_read=_STALL_LIMIT_S)}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise ConfigError(f"{url}: {str(error) or error.__cause__} (pip install it)") from None
    except ValueError as error:
        raise ConfigError(f"{url}: {error}; fsspec knows {', '.join(sorted(fsspec.available_protocols()))}") from None
    return system, path


def _check_no_secret(url: str) -> None:
    """Raise ConfigError if a URL, or one chained to it, holds a password, a token as user name, or a signature."""
    for link in url.split("::"):
        parts = urlsplit(
            re.sub(r":/+", "://", link, count=1)
        )  # Path has removed a slash from the second URL of a recipe
        web = parts.scheme in ("http", "https")  # a user name in a web address is a token, in ssh a person
        held = "a password" if parts.password else "a user" if web and parts.username else None
        if held is None and any(_SIGNATURE.search(name) for name, _ in parse_qsl(parts.query) if web):
            held = "a key or signature"
        if held is not None:
            raise ConfigError(
                f"{held} in the URL of {parts.scheme}://{parts.hostname}: recipes are stored with the corpus. "
                "Put it into fsspec's configuration (~/.config/fsspec) or the storage's own"
            )


def _import_protocol(package: str, protocol: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise ConfigError(f"{protocol}:// needs the package {package}: pip install {package}") from None


def with_retries(what: str, action: Callable[[], T], *, waits_s: Sequence[float] = RETRY_WAITS_S) -> T:
    """Return the action's result; after an error, wait and try again. ConfigError: each try failed, or all would."""
    for wait_s in (*waits_s, None):
        try:
            return action()
        except ConfigError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            if wait_s is None or _is_final(error):
                reason = str(error).splitlines()[0] if str(error) else ""
                raise ConfigError(f"{what}: {type(error).__name__}: {reason}"[:500]) from None
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)  # status of an HTTP answer: 408 and 429 mean "try again"
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    if type(error).__name__ == "OfflineModeIsEnabled":  # of huggingface_hub, under HF_HUB_OFFLINE
        return True
    return refused or isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)


def _version(info: dict[str, Any]) -> dict[str, str]:
    found = {key: _as_text(info[key]) for key in _VERSIONS if info.get(key) is not None}
    if not found and info.get("created") is not None:
        found = {"created": _as_text(info["created"])}
    return found


def _as_text(value: object) -> str:
    """Give one text for a time as a number or as a date: some systems mix both between listings and single files."""
    if isinstance(value, datetime):
        value = value.timestamp()
    return f"{value:.6f}" if isinstance(value, float) else str(value)
