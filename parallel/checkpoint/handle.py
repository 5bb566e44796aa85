"""Verify the files of a checkpoint once, and return a handle that loading needs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parallel.agreement import Group, rank_in, run_on_all_ranks, world_size
from parallel.checkpoint.files import check_file, read_json
from parallel.checkpoint.index import StoredTensor, read_index
from parallel.checkpoint.manifest import STATE, CheckpointManifest, check_state, read_manifest


@dataclass(frozen=True)
class CheckpointHeader:
    """Manifest and state of a checkpoint, which match their digests. The other files are not verified."""

    path: Path
    manifest: CheckpointManifest
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files all match its manifest: `verify_checkpoint` and `find_latest` have verified it."""

    path: Path
    manifest: CheckpointManifest
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest.step

    @cached_property
    def index(self) -> dict[str, StoredTensor]:
        """Every tensor by name, read on first use: with thousands of ranks it takes gigabytes of memory.

        CheckpointError if it contradicts itself or the manifest.
        """
        return read_index(self.path, self.manifest)


def read_checkpoint_header(path: Path) -> CheckpointHeader:
    """Read the small files of a checkpoint. CheckpointError if they are damaged. Any one rank may call this."""
    path = Path(path)
    manifest = read_manifest(path)
    state = read_json(path, STATE, manifest.files[STATE])
    check_state(path, state, manifest)
    return CheckpointHeader(path, manifest, state)


def verify_checkpoint(path: Path, *, group: Group = None) -> Checkpoint:
    """Read the small files of a checkpoint, and compare size and SHA-256 of all files with the manifest.

    Collective over `group`: each rank reads a share of the files. CheckpointError on all ranks if any file is damaged.
    """
    verified: list[Checkpoint] = []  # stays on this rank: every rank reads its own

    def verify_here() -> None:
        header = read_checkpoint_header(path)
        _check_share(header, group)
        verified.append(_verified(header))

    run_on_all_ranks(verify_here, group, path=Path(path))
    return verified[0]


def verify_header(header: CheckpointHeader, *, group: Group) -> Checkpoint:
    """Verify a checkpoint whose header has been read, as `verify_checkpoint` does."""
    run_on_all_ranks(lambda: _check_share(header, group), group, path=header.path)
    return _verified(header)


def _check_share(header: CheckpointHeader, group: Group) -> None:
    files = {name: record for name, record in header.manifest.files.items() if name != STATE}
    by_size = sorted(files, key=lambda name: (-files[name].size_bytes, name))
    for name in by_size[rank_in(group) :: world_size(group)]:
        check_file(header.path, name, files[name])


def _verified(header: CheckpointHeader) -> Checkpoint:
    return Checkpoint(header.path, header.manifest, header.state)
