"""Compare the files of a checkpoint with its manifest."""

from pathlib import Path

from parallel.agreement import Group, rank_in, together, world_size
from parallel.checkpoint.manifest import FileRecord, check_file, read_manifest
from parallel.errors import CheckpointError


def verify(path: Path, *, group: Group = None) -> str | None:
    """Check manifest, sizes and SHA-256 of all files: None when the checkpoint is whole, or what is wrong with it.

    Collective over `group`: each rank reads a share of the files, and all ranks get the same answer.
    """
    path = Path(path)

    def check_share() -> None:
        files = read_manifest(path).files
        by_size = sorted(files, key=lambda name: (-files[name].size_bytes, name))
        for name in by_size[rank_in(group) :: world_size(group)]:
            check_against(path, name, files[name])

    try:
        together(check_share, group, path=path)
    except CheckpointError as error:
        return error.reason
    return None


def check_against(path: Path, name: str, record: FileRecord) -> None:
    """CheckpointError if the file is not as its record says."""
    wrong = check_file(path, name, record)
    if wrong is not None:
        raise CheckpointError(path, wrong)
