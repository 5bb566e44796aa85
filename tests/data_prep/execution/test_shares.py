"""Shares of one run: each locks its part, does its own tasks, and tells a slow share from a dead one."""

import errno
import fcntl
import io
import os
import threading
import time
from pathlib import Path

import pytest
from in_process import InThisProcess
from rich.console import Console

from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shares import Share, WorkFolderLock, observe_runs
from data_prep.execution.tasks import Stage, Task
from data_prep.execution.workspace import Workspace
from data_prep.filters.language import LANGUAGE, LanguageConfig
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("pycld2", reason="the extra 'data' is not installed")

QUIET = ProgressBars(Console(quiet=True))


@pytest.fixture
def shards(tmp_path, prose) -> list[Path]:
    paths = [tmp_path / "in" / f"{n}.jsonl.zst" for n in range(4)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        with write_shard(path) as write:
            write(Document(f"d{number}", prose(number)))
    return paths


def work(folder, shards, share, *, progress=QUIET, timeout_s=60.0):
    """Digests of the shards and the language stage, as one share (None: alone); the documents of every output."""
    with Workspace(
        folder,
        n_workers=1,
        progress=progress,
        executor=InThisProcess,
        share=share,
        share_timeout_s=timeout_s,
    ) as workspace:
        names = [path.name for path in shards]
        assert len(workspace.digests(shards)) == len(shards)
        outputs = [(workspace.folder / "language" / n, workspace.folder / "language" / f"{n}.dropped") for n in names]
        tasks = [Task(LanguageConfig(), (path,), output) for path, output in zip(shards, outputs, strict=True)]
        finished = workspace.run(LANGUAGE, tasks)
        assert [task.counts[0].documents_in for task in finished] == [1] * len(shards)
        return [list(read_shard(output[0])) for output in outputs]


def test_shares_divide_the_work_and_each_returns_all_of_it(tmp_path, shards):
    expected = work(tmp_path / "alone", shards, None)
    found = {}

    def one(number):
        found[number] = work(tmp_path / "w", shards, Share(number, 3))

    threads = [threading.Thread(target=one, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(timeout=60)
    assert found == {1: expected, 2: expected, 3: expected}
    lines = [(tmp_path / f"w/manifest-{number}-of-3.jsonl").read_text().count('"key"') for number in (1, 2, 3)]
    assert lines == [2, 1, 1]  # of four tasks
    assert list((tmp_path / "w").rglob("*tmp*")) == []
    # A run alone, or shares of another count, find all of it done.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w/language").iterdir()}
    assert work(tmp_path / "w", shards, None) == expected
    assert work(tmp_path / "w", shards, Share(2, 5)) == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "w/language").iterdir()} == before
    assert [seen.status.state for seen in observe_runs(tmp_path / "w")] == ["done", "done"]


def test_only_shares_of_one_count_may_work_together(tmp_path):
    def start(share):
        lock = WorkFolderLock(tmp_path, share)
        lock.acquire()
        return lock

    one = start(Share(1, 2))
    two = start(Share(2, 2))
    assert [(seen.status.share, seen.is_running) for seen in observe_runs(tmp_path)] == [("1/2", True), ("2/2", True)]
    with pytest.raises(ConfigError, match=r"another run is working in this folder \(pid \d+ on .*; pid"):
        start(None)
    with pytest.raises(ConfigError, match=r"share 2/2 is already working in this folder"):
        start(Share(2, 2))
    with pytest.raises(ConfigError, match=r"share 1/2 is working in this folder, and this is share 3/4; all shares"):
        start(Share(3, 4))
    one.release()
    two.release()
    alone = start(None)
    with pytest.raises(ConfigError, match=r"another run is working in this folder"):
        start(Share(1, 2))
    alone.release()
    start(Share(1, 2)).release()


def test_a_share_that_never_starts_or_dies_is_named(tmp_path, shards):
    with pytest.raises(
        ConfigError, match=r"^share 2/2 has not been started for 0.00833 minutes, .*start it again with --share 2/2"
    ):
        work(tmp_path / "w", shards, Share(1, 2), timeout_s=0.5)
    dead = WorkFolderLock(tmp_path / "w", Share(2, 2))
    dead.acquire()
    dead.write_status("working", step=2, stage="language")
    dead.release()  # as the kernel does it for a process that dies
    with pytest.raises(
        ConfigError, match=r"share 2/2 has shown no sign of life .*last in stage 'language', pid \d+ on"
    ):
        work(tmp_path / "w", shards, Share(1, 2), timeout_s=0.5)
    assert [seen.status.state for seen in observe_runs(tmp_path / "w")] == ["failed", "working"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            {"state": "failed", "stage": "extract", "message": "the disk is full"},
            "stopped in stage 'extract': the disk",
        ),
        ({"state": "waiting", "step": 1, "tasks": "other"}, r"share 2/2 \(pid \d+ on .*\) has other tasks in stage"),
    ],
)
def test_the_status_of_another_share_ends_the_wait(tmp_path, shards, word, message):
    (tmp_path / "w").mkdir()
    other = WorkFolderLock(tmp_path / "w", Share(2, 2))
    other.acquire()
    other.write_status("failed", message="of an earlier run, so no reason to stop")
    waiting = threading.Event()

    class Output(io.StringIO):
        """The output of the share; sets an event when it waits."""

        def write(self, text):
            if "waiting for 2 of share 2/2" in text:
                waiting.set()
            return len(text)

    def say():
        assert waiting.wait(30)
        other.write_status(**{"step": 0, "stage": "reading of inputs", "tasks": "", "message": "", **word})

    threading.Thread(target=say, daemon=True).start()
    with pytest.raises(ConfigError, match=message):
        work(
            tmp_path / "w", shards, Share(1, 2), progress=ProgressBars(Console(file=Output(), width=200), every_s=0.05)
        )
    other.release()


@pytest.mark.parametrize("both", [False, True])
def test_damage_is_made_again_by_the_share_that_finds_it(tmp_path, functions, both):
    """Share 2 made a file that share 1 finds damaged; share 2 goes on to wait for share 1, or finds the damage too."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    config, barrier, found = functions.Config("", tmp_path / "log"), threading.Barrier(2), {}

    def one(number):
        share, said, flipped = Share(number, 2), io.StringIO(), []
        progress = ProgressBars(Console(file=said, width=500))
        with Workspace(tmp_path / "w", n_workers=1, progress=progress, executor=InThisProcess, share=share) as work:
            made = [work.folder / "made" / name for name in "ab"]
            after = [work.folder / "after" / name for name in "ab"]

            def steps():
                work.run(
                    Stage("made", functions.copy),
                    [Task(config, (tmp_path / name,), (path,)) for name, path in zip("ab", made, strict=True)],
                )
                if not flipped:
                    barrier.wait(20)
                    if number == 1:
                        stat = made[1].stat()
                        made[1].write_text("?")
                        os.utime(made[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
                    flipped.append(True)
                    barrier.wait(20)
                inputs = [tuple(made), tuple(made)] if both else [made[1:], made[:1]]
                work.run(
                    Stage("after", functions.join),
                    [Task(config, tuple(read), (path,)) for read, path in zip(inputs, after, strict=True)],
                )
                return [path.read_text() for path in after]

            found[number] = work.run_whole(steps), said.getvalue().count("It is made again")

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    texts = ["ab", "ab"] if both else ["b", "a"]
    assert found.keys() == {1, 2}, "a share failed, or waits for the other one"
    assert [texts, texts] == [found[number][0] for number in (1, 2)]
    assert 1 <= found[1][1] + found[2][1] <= 2


def test_invalid_shares_are_errors(monkeypatch):
    assert Share.parse("3/8") == Share(3, 8)
    owners = [Share(1, 3).owner(index) for index in range(7)]
    assert owners == [1, 2, 3, 1, 2, 3, 1] == [Share(3, 3).owner(index) for index in range(7)]
    with pytest.raises(ConfigError, match="share '3' is invalid: must be K/N"):
        Share.parse("3")
    with pytest.raises(ConfigError, match=r"share 0/4 is invalid: the number must lie between 1 and 4"):
        Share.parse("0/4")
    with pytest.raises(ConfigError, match=r"share 5/4"):
        Share.parse("5/4")


def test_a_file_system_without_locks_is_named_in_one_line(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"its file system supports no locks \(No locks available\).*output\.work"):
        WorkFolderLock(tmp_path, None).acquire()
