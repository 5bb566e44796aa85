"""Folders of one user on a disk that others share: made closed, and refused if another user could have touched them."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from parallel.checkpoint.private import make_private

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder as /dev/shm: everybody may write, and nobody may remove what is another's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(program: str, folder: Path) -> None:
    subprocess.run(["/bin/sh", "-c", program], cwd=folder, user=NOBODY, group=NOBODY, extra_groups=[], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_folders_are_closed_to_others(shared: Path) -> None:
    folder = shared / "run" / "rank"
    make_private(folder, below=shared)
    assert (mode(folder), mode(folder.parent), mode(shared)) == (0o700, 0o700, 0o1777)
    folder.chmod(0o755)  # as an earlier version made it
    make_private(folder, below=shared)
    assert mode(folder) == 0o700


def test_what_others_could_have_changed_is_refused(shared: Path, tmp_path: Path) -> None:
    (shared / "open").mkdir()
    (shared / "open").chmod(0o775)
    (shared / "link").symlink_to(tmp_path)
    (shared / "file").touch()
    for name, reason in (
        ("open", "could be written by other users"),
        ("link", "is a symbolic link, which is not followed"),
        ("file", "is no folder"),
    ):
        with pytest.raises(ConfigError, match=f"{shared}/{name} {reason}"):
            make_private(shared / name / "rank", below=shared)
    assert list(tmp_path.iterdir()) == []
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="lets every user remove the folders of others"):
        make_private(shared / "run", below=shared)


@needs_root
def test_a_folder_of_another_user_is_refused(shared: Path, tmp_path: Path) -> None:
    as_nobody(f"mkdir run && ln -s {tmp_path} run/rank", shared)
    with pytest.raises(ConfigError, match=f"{shared}/run belongs to user {NOBODY}, not to you"):
        make_private(shared / "run" / "rank", below=shared)
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_another_user_can_neither_enter_nor_exchange_what_was_made(shared: Path) -> None:
    make_private(shared / "run" / "rank", below=shared)
    for attack in ("ls run", "mkdir run/x", "mv run other"):
        with pytest.raises(subprocess.CalledProcessError):
            as_nobody(attack, shared)
    assert [path.name for path in (shared / "run").iterdir()] == ["rank"]
