"""Temporary folders of processes that were killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.files.temporary import OWNER, temporary_folder

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys
from gpt.files.temporary import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder.path / "a file").touch()
    print(folder.path, flush=True)
    sys.stdin.read()
"""


def test_the_next_owner_removes_the_folder_of_a_killed_one_and_no_other(tmp_path):
    stranger, link = tmp_path / "triaxial_without_owner", tmp_path / "triaxial_link"
    stranger.mkdir()
    link.symlink_to(stranger)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
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


CHURN = """
import sys
from gpt.files.temporary import OWNER, temporary_folder
for _ in range(300):
    with temporary_folder(sys.argv[1]) as folder:
        (folder.path / OWNER).stat()
"""


def test_processes_that_start_at_once_do_not_remove_the_folders_of_each_other(tmp_path):
    command = [sys.executable, "-c", CHURN, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [""] * 4
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_machine_is_kept(tmp_path):
    other = tmp_path / "triaxial_other"
    other.mkdir()
    (other / OWNER).write_text("a boot id of another machine")
    with temporary_folder(str(tmp_path)):
        assert (other / OWNER).exists()


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_without_locks_a_folder_can_be_used_and_nobody_removes_it(tmp_path):
    fault = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=flock:error=ENOLCK"]
    command = [*fault, sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        held = Path(holder.stdout.readline().strip())
        with temporary_folder(str(tmp_path)):
            assert (held / "a file").exists()
    assert not held.exists()
