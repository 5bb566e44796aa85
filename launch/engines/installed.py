"""The engines that this machine can run, and locks that a killed build of an extension left behind.

Imports no engine: versions come from the packages' metadata.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

from parallel.engines.capabilities import capabilities_of, version_fault
from parallel.layout.config import EngineName

STALE_AFTER_S = 300.0  # a younger lock may be of a build on another machine that shares this folder


@dataclass(frozen=True)
class EngineFacts:
    """One engine: its package (None: the core packages suffice), the version found or None, and where it runs.

    `fault`: the reason why this version is refused, as the end of a sentence. `wanted`: the versions to install.
    """

    engine: str
    package: str | None
    version: str | None
    fault: str | None
    wanted: str
    extra: str
    devices: tuple[str, ...]


def engines_found() -> tuple[EngineFacts, ...]:
    """Every engine that a recipe can name, the default one first."""
    return tuple(_facts(engine) for engine in get_args(EngineName))


def stale_locks(settings: Mapping[str, str], *, now: float | None = None) -> tuple[str, ...]:
    """Lock files in the folder of torch's extension builds that no process holds open.

    The process that builds an extension creates `lock` in its folder and keeps it open; all others wait until the file
    is gone. If the builder is killed, they wait forever (torch.utils.file_baton). `settings`: environment variables.
    """
    now = time.time() if now is None else now
    old = [path for path, modified_at in _locks(extensions_folder(settings)) if now - modified_at > STALE_AFTER_S]
    held = _open_files() if old else set()
    return tuple(str(path) for path in old if str(path.resolve()) not in held)


def extensions_folder(settings: Mapping[str, str]) -> Path:
    """The folder in which torch and DeepSpeed build extensions."""
    named = settings.get("TORCH_EXTENSIONS_DIR")
    return Path(named) if named else Path(settings.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torch_extensions")


def _locks(folder: Path) -> list[tuple[Path, float]]:
    """The locks, each with the time at which it was made.

    A lock is FOLDER/EXTENSION/lock or, without TORCH_EXTENSIONS_DIR, FOLDER/VERSIONS/EXTENSION/lock.
    """
    found = []
    for path in sorted(path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)):
        with suppress(OSError):  # the build has just ended
            found.append((path, path.stat().st_mtime))
    return found


def _open_files() -> set[str]:
    """The paths of files that processes hold open, as far as this user may see."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # the process has ended, or is another user's
            found.add(os.readlink(link))
    return found


def _facts(engine: str) -> EngineFacts:
    capabilities = capabilities_of(engine)
    found = fault = None
    if capabilities.package is not None:
        try:
            found = version(capabilities.package)
            fault = version_fault(capabilities, found)
        except PackageNotFoundError:
            pass
    return EngineFacts(
        engine, capabilities.package, found, fault, capabilities.versions, capabilities.extra, capabilities.devices
    )
