"""Temporary folders of processes that were killed."""

import os
import subprocess
import sys
from pathlib import Path

from gpt.files.temporary import OWNER, temporary_folder

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from gpt.files.temporary import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder.path / "a file").touch()
    print(folder.path, flush=True)
    time.sleep(600)
"""


def test_the_next_owner_removes_the_folder_of_a_killed_one_and_no_other(tmp_path):
    stranger, link = tmp_path / "triaxial_without_owner", tmp_path / "triaxial_link"
    stranger.mkdir()
    link.symlink_to(stranger)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        held = Path(holder.stdout.readline().strip())
        with temporary_folder(str(tmp_path)) as folder:
            assert folder.path.stat().st_mode & 0o777 == 0o700
            assert (held / "a file").exists(), "its owner lives"
        assert not folder.path.exists()
        holder.kill()
        holder.wait()
    assert held.exists()
    with temporary_folder(str(tmp_path)) as kept:
        assert not held.exists()
        kept.keep()
    with temporary_folder(str(tmp_path)):
        assert kept.path.exists(), "it was left for the user to read"
    assert stranger.exists()
    assert link.is_symlink()


def test_a_pipe_in_the_place_of_the_owners_file_does_not_block(tmp_path):
    trap = tmp_path / "triaxial_trap"
    trap.mkdir()
    os.mkfifo(trap / OWNER)
    with temporary_folder(str(tmp_path)) as folder:
        assert folder.path.exists()
