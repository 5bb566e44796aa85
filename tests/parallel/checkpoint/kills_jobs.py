"""Kill saving processes with SIGKILL at file operations, system calls and random moments: a program of test_kills.py.

python kills_jobs.py JOB FOLDER RANK RANKS
"""

import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from cases import (
    check_whole,
    ended,
    fork,
    run_main,
    same,
    save_value,
    some_tensors,
    trace,
    tracer_check,
    wait_until,
)

from gpt.training.config import Retention
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.local_tier import find_newest_local, load_local, mark, rank_directory
from parallel.checkpoint.plan import make_plan, make_rank_plan
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError

CPU = torch.device("cpu")
KINDS = ("waiting", "background", "local")  # the local tier saves in the background
LAYOUT: dict[str, object] = {"tensor": 1}
FILE_CALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlinkat", "rmdir")
LOST_A_RANK, STALE = 5, 6  # exit codes


def job_operations(folder: Path, rank: int) -> None:
    """SIGKILL before each STRIDE-th file operation of a save; a whole checkpoint always remains."""
    stride, counts = int(os.environ["STRIDE"]), {}
    for kind in ("waiting", "background"):
        for case, step in (("next step", 2), ("same step", 1)):
            directory = folder / f"{kind} {case}"
            for moment in range(1, 1000, stride):
                shutil.rmtree(directory, ignore_errors=True)
                save_value(directory, 1, 1)
                finished = _save_in_child(directory, kind, step, kill_at=moment)
                value = check_whole(directory)
                assert value == 2 if finished else value in (1, 2), (kind, case, moment)
                if finished:
                    break
                save_value(directory, 3, 3)
                assert os.listdir(directory) == ["step-000000003"], (kind, case, moment)
            counts[directory.name] = moment
    (folder / "counts.json").write_text(json.dumps(counts))


def _save_in_child(directory: Path, kind: str, step: int, *, kill_at: int) -> bool:
    """Save in a forked process that is killed before its `kill_at`-th file operation; return whether it finished."""

    def work() -> int:
        left = kill_at

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            ours = args and str(args[0]).startswith(str(directory))
            if ours and event in (
                "os.fsync",
                "os.rename",
                "os.mkdir",
                "os.remove",
                "os.rmdir",
                "open",
                "shutil.rmtree",
            ):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:  # Python raises no audit event for it
            count("os.fsync", (directory,))
            real_fsync(descriptor)
            count("os.fsync", (directory,))

        os.fsync = fsync
        sys.addaudithook(count)
        saver = BackgroundSaver(lambda: some_tensors(2.0), BackgroundWriter(CPU))
        return 0 if _save(kind, saver, directory, step, 2) else 3

    return ended(fork(work)) == 0


def job_calls(folder: Path, rank: int) -> None:
    """Let strace kill one of two saving ranks at its n-th call of each kind that touches files, for n = 1, 2, ..."""
    kills, stride = 0, int(os.environ["STRIDE"])
    for kind in ("waiting", "background"):
        for doomed in range(2):
            for call in FILE_CALLS:
                for n in range(1, 1000, stride):
                    directory = folder / f"run-{kind}"
                    shutil.rmtree(directory, ignore_errors=True)
                    save_value(directory, 1, 1)
                    codes = _save_on_two(folder, directory, kind, doomed=doomed, inject=f"{call}:signal=KILL:when={n}")
                    value = check_whole(directory)
                    assert value in (1, 2), (kind, doomed, call, n)
                    if codes == [0, 0]:
                        assert value == 2
                        break
                    assert codes[doomed] == -signal.SIGKILL, (kind, doomed, call, n, codes)
                    assert codes[1 - doomed] in (0, LOST_A_RANK), (kind, doomed, call, n, codes)
                    kills += 1
    (folder / "kills.json").write_text(json.dumps({"kills": kills}))


def _save_on_two(folder: Path, directory: Path, kind: str, *, doomed: int, inject: str) -> list[int]:
    """Let two forked ranks save step 2, with strace attached to one; return their exit codes."""
    meeting, ready = folder / "meet", folder / "ready"
    for path in (meeting, ready):
        path.unlink(missing_ok=True)

    def work(rank: int) -> int:
        _join(meeting, rank)
        saver = BackgroundSaver(lambda: some_tensors(2.0), BackgroundWriter(CPU))
        saver.prepare(directory)  # as before the first step of a run: the ranks form their group
        if rank == doomed:
            is_traced = tracer_check()
            ready.touch()
            wait_until(is_traced)
        try:
            return 0 if _save(kind, saver, directory, 2, 2) else LOST_A_RANK
        except (RuntimeError, CheckpointError):
            return LOST_A_RANK

    children = [fork(functools.partial(work, rank)) for rank in range(2)]
    wait_until(ready.exists)
    tracer = trace(children[doomed], inject, Path(os.devnull))
    codes = [ended(child) for child in children]
    tracer.wait()
    return codes


def job_random(folder: Path, rank: int) -> None:
    """SIGKILL to one or both of two saving ranks at random moments; no save that was reported as done is lost."""
    kills, rng = int(os.environ["KILLS"]), random.Random(7)
    survived_alone, newest = 0, dict.fromkeys(KINDS, 0)
    for kill in range(kills):
        kind = KINDS[kill % 3]
        children = [fork(functools.partial(_save_until_lost, folder, kind, kill, rank)) for rank in range(2)]
        wait_until((folder / f"begun-{kill}").exists)
        time.sleep(rng.uniform(0.0, 0.12))
        doomed = rng.choice([[0], [1], [0, 1]])
        for rank in doomed:
            os.kill(children[rank], signal.SIGKILL)
        for rank, child in enumerate(children):
            code = ended(child)
            assert code == (-signal.SIGKILL if rank in doomed else LOST_A_RANK), (kind, kill, rank, code)
            survived_alone += rank not in doomed
        value = check_whole(folder / kind) if kind != "local" else _local_on_two(folder, kill)
        assert value >= _reported(folder, kind) >= newest[kind], "a published checkpoint was lost"
        newest[kind] = value
    result = {"kills": kills, "survived_alone": survived_alone, "newest": newest}
    (folder / "kills.json").write_text(json.dumps(result))


def _save_until_lost(folder: Path, kind: str, kill: int, rank: int) -> int:
    """One of two ranks: resume from the newest checkpoint and save step after step, until the other rank is lost."""
    _join(folder / f"meet-{kill}", rank)
    value = _find(folder, kind)
    plan = make_rank_plan if kind == "local" else make_plan
    saver = BackgroundSaver(lambda: some_tensors(value), BackgroundWriter(CPU), make_plan=plan)
    try:
        while True:
            value += 1
            _save(kind, saver, folder / kind, value, value)
            (folder / f"{kind}-{rank}").write_text(str(value))
            (folder / f"begun-{kill}").touch()
    except (RuntimeError, CheckpointError):
        return LOST_A_RANK


def _local_on_two(folder: Path, kill: int) -> int:
    """Two new ranks find and load the same checkpoint in the local tier; return its value."""
    children = [fork(functools.partial(_look, folder, kill, rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    values = {int((folder / f"looked-{rank}").read_text()) for rank in range(2)}
    assert len(values) == 1
    return values.pop()


def _look(folder: Path, kill: int, rank: int) -> int:
    _join(folder / f"look-{kill}", rank)
    (folder / f"looked-{rank}").write_text(str(_find(folder, "local")))
    return 0


def _find(folder: Path, kind: str) -> int:
    """Load the newest checkpoint that the ranks agree on, and compare it. Return its value; 0 if there is none."""
    tensors = some_tensors(-1.0)
    if kind == "local":
        found, _, _ = find_newest_local(folder / "local", run_id="r", layout=LAYOUT)
        if found is not None:
            load_local(found, tensors)
    else:
        found, skipped = find_latest(folder / kind)
        assert not skipped
        if found is not None:
            load_checkpoint(found, tensors=tensors, complete=True)
    if found is None:
        return 0
    value = int(found.state["value"])
    assert all(same(tensors[name], tensor) for name, tensor in some_tensors(value).items()), "a mixture"
    return value


def _save(kind: str, saver: BackgroundSaver, directory: Path, step: int, value: int) -> bool:
    """Save some_tensors(value) and wait; return False if it failed."""
    state: dict[str, object] = {"value": value, "step": step, "run_id": "r"}
    if kind == "waiting":
        save_checkpoint(directory, step=step, tensors=some_tensors(value), state=state, keep=Retention(1))
        return True
    is_local = kind == "local"
    if is_local:
        state = mark(state, save_id=str(value), layout=LAYOUT)
        directory.mkdir(parents=True, exist_ok=True)
        directory = rank_directory(directory)
    saver.start(directory, step=step, state=state, keep=Retention(2 if is_local else 1))
    (result,) = saver.finished(wait=True)
    if result.error is not None and dist.is_initialized():
        raise RuntimeError(result.error)
    return result.error is None


def _reported(folder: Path, kind: str) -> int:
    """The newest step that was reported to a rank as saved."""
    texts = [path.read_text() for path in folder.glob(f"{kind}-?")]  # empty: killed between opening and writing
    return max((int(text) for text in texts if text), default=0)


def _join(meeting: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


if __name__ == "__main__":
    run_main({"operations": job_operations, "calls": job_calls, "random": job_random})
