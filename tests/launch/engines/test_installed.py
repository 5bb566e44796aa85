"""The engines found, and stale locks: a lock is stale if it is old and no process holds it open."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from launch.engines.installed import STALE_AFTER_S, engines_found, extensions_folder, stale_locks
from parallel.layout.config import EngineName


def lock_of(folder: Path, *, age_s: float) -> Path:
    folder.mkdir(parents=True)
    lock = folder / "lock"
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    return lock


def test_only_old_locks_that_no_process_holds_are_stale(tmp_path: Path) -> None:
    old = lock_of(tmp_path / "py311_cpu" / "deepspeed_shm_comm", age_s=2 * STALE_AFTER_S)
    direct = lock_of(tmp_path / "fused_adam", age_s=2 * STALE_AFTER_S)
    lock_of(tmp_path / "py311_cpu" / "young", age_s=1)
    held = lock_of(tmp_path / "py311_cpu" / "held", age_s=2 * STALE_AFTER_S)
    settings = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    program = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "open\n"
        assert set(stale_locks(settings)) == {str(old), str(direct)}
        builder.communicate("")
    assert str(held) in stale_locks(settings), "the builder has ended"


def test_the_lock_of_torchs_own_baton_is_found(tmp_path: Path) -> None:
    from torch.utils.file_baton import FileBaton

    (tmp_path / "extension").mkdir()
    baton = FileBaton(str(tmp_path / "extension" / "lock"))
    settings, later = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}, time.time() + 2 * STALE_AFTER_S
    assert baton.try_acquire()
    assert stale_locks(settings, now=later) == (), "this process builds"
    os.close(baton.fd)
    assert stale_locks(settings, now=later) == (str(tmp_path / "extension" / "lock"),)


def test_the_folder_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.cpp_extension import get_default_build_root

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert extensions_folder({}).resolve() == Path(get_default_build_root())
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert extensions_folder({"XDG_CACHE_HOME": "/somewhere"}) == Path(get_default_build_root())
    assert stale_locks({"TORCH_EXTENSIONS_DIR": "/nonexistent"}) == ()


def test_every_engine_of_a_recipe_is_listed_the_default_first() -> None:
    found = engines_found()
    assert [each.engine for each in found] == list(get_args(EngineName))
    assert (found[0].engine, found[0].package, found[0].fault) == ("native", None, None)
