"""List, publish and delete the checkpoint folders of one directory.

Only rank 0 calls the functions that change anything; node-local, each rank does so in its own directory. At any moment
a folder is either published whole, or has a hidden name:

    .saving-step-000000123-<random>    being written, or left by a save that died
    .replaced-step-000000123-<random>  set aside for a new save of the same step
    .deleting-step-000000123-<random>  being deleted
"""

import logging
import re
import secrets
import shutil
from pathlib import Path

from gpt.training.config import Retention
from parallel.checkpoint.files import fsync_folder
from parallel.errors import CheckpointError

_SAVING, _REPLACED, _DELETING = ".saving-", ".replaced-", ".deleting-"
_REPLACED_NAME = re.compile(rf"\{_REPLACED}(step-\d+)-[0-9a-f]+")
_STEP_NAME = re.compile(r"step-(\d{9,})")
_log = logging.getLogger(__name__)


def step_name(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step in the name of a published folder, or None for any other name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_checkpoints(directory: Path, *, at_most: int | None = None) -> list[Path]:
    """Published checkpoints of steps up to `at_most`, newest step first, not verified. `list_unusable` lists the rest.

    A save that replaces a checkpoint of the same step may die between its two renames. The checkpoint that it set aside
    is then listed under its hidden name.
    """
    try:
        entries = sorted(Path(directory).iterdir())  # hidden names come first, so a published one wins
    except FileNotFoundError:
        return []
    found: dict[int, Path] = {}
    for entry in entries:
        step = step_of(_published_name(entry.name))
        wanted = step is not None and (at_most is None or step <= at_most)
        if step is not None and wanted and entry.is_dir() and not entry.is_symlink():
            found[step] = entry
    return [found[step] for step in sorted(found, reverse=True)]


def list_unusable(directory: Path, *, at_most: int | None = None) -> list[tuple[Path, str]]:
    """List paths named like checkpoints up to `at_most` that are not folders, newest step first, with the reason."""
    try:
        entries = [entry for entry in Path(directory).iterdir() if step_of(entry.name) is not None]
    except FileNotFoundError:
        return []
    entries = [entry for entry in entries if at_most is None or published_step(entry) <= at_most]
    unusable = [entry for entry in entries if entry.is_symlink() or not entry.is_dir()]
    return [
        (entry, "it is a symbolic link, which is not followed" if entry.is_symlink() else "it is no folder")
        for entry in sorted(unusable, key=published_step, reverse=True)
    ]


def make_hidden(final: Path) -> Path:
    """Delete the remains of dead saves in the directory of `final`, and make an empty hidden folder there.

    CheckpointError if `final` is a symbolic link; OSError when the disk refuses, or if the folder that holds the
    directory is gone: a deleted run directory is not made again.
    """
    directory = final.parent
    if final.is_symlink():
        raise CheckpointError(final, "a symbolic link has this name; move it away")
    if not directory.is_dir():
        directory.mkdir(exist_ok=True)
        fsync_folder(directory.parent)
    for entry in sorted(directory.iterdir()):
        is_hidden = entry.name.startswith((_SAVING, _DELETING, _REPLACED))
        if is_hidden and (entry.is_symlink() or not entry.is_dir()):  # not ours; a link's target stays as it is
            entry.unlink()
        elif entry.name.startswith((_SAVING, _DELETING)):
            shutil.rmtree(entry)
        elif entry.name.startswith(_REPLACED):
            published = directory / _published_name(entry.name)
            if published.exists():
                shutil.rmtree(entry)
            else:
                entry.rename(published)
    hidden = _hidden_path(_SAVING, final)
    hidden.mkdir()
    return hidden


def publish(hidden: Path, final: Path) -> None:
    """Give a fully written and fsynced folder its final name, durably. A folder that has the name is replaced.

    OSError when the disk refuses; the directory is then as it was before.
    """
    fsync_folder(hidden)
    replaced = None
    if final.is_dir():  # rename cannot replace a folder that has content
        replaced = _hidden_path(_REPLACED, final)
        final.rename(replaced)
    try:
        hidden.rename(final)
        fsync_folder(final.parent)
    except OSError:
        if not hidden.exists():  # the rename may not survive a power failure: a failed save must not be found
            final.rename(hidden)
        if replaced is not None:
            replaced.rename(final)
        raise
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def delete_old(final: Path, keep: Retention) -> None:
    """Delete checkpoints of earlier steps than `final` that `keep` does not keep. Errors are only logged.

    Later steps stay: the run resumed from before them, or they are damaged. The user decides about them.
    """
    step = step_of(final.name)
    assert step is not None
    try:
        earlier = [path for path in list_checkpoints(final.parent) if published_step(path) < step]
    except OSError as error:
        _log.warning("cannot list old checkpoints in %s: %s", final.parent, error)
        return
    for path in earlier[keep.last - 1 :]:
        if not keep.permanent(published_step(path)):
            delete(path)


def delete_after(directory: Path, step: int) -> None:
    """Delete the checkpoints of later steps, the last one first. Errors are only logged."""
    for path in list_checkpoints(directory):
        if published_step(path) > step:
            delete(path)


def delete(path: Path) -> None:
    """Delete a checkpoint. It is hidden first, so that a half-deleted one is never found. Errors are only logged."""
    try:
        hidden = _hidden_path(_DELETING, path)
        path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        _log.warning("cannot delete the old checkpoint %s: %s", path, error)


def published_step(path: Path) -> int:
    """The step of a folder that `list_checkpoints` returned, or of the final path of a save."""
    step = step_of(_published_name(path.name))
    assert step is not None
    return step


def _hidden_path(prefix: str, final: Path) -> Path:
    return final.parent / f"{prefix}{final.name}-{secrets.token_hex(8)}"


def _published_name(name: str) -> str:
    """The name that a folder had before it was set aside; any other name as it is."""
    match = _REPLACED_NAME.fullmatch(name)
    return match[1] if match else name
