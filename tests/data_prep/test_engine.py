"""The manifest decides what is done; killed workers are noticed, their tasks retried; failures leave nothing behind."""

import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.counts import Counts, Tally, total
from data_prep.engine import Stage, Task, Workspace
from data_prep.files import disk_errors
from data_prep.progress import Progress
from data_prep.workers import LocalWorkers, _end_of_stream, _receive
from gpt.errors import ConfigError

xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

# Stage functions must be importable by the workers, so they live in a module on the path.
FUNCTIONS = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from data_prep.counts import Counts
from data_prep.engine import Result
from gpt.errors import ConfigError


@dataclass(frozen=True)
class Config:
    prefix: str
    log: Path


def copy(config, inputs, outputs):
    with open(Path(config.log), "a") as log:
        log.write(inputs[0].name + "\\n")
    outputs[0].write_bytes(config.prefix.encode() + inputs[0].read_bytes())
    return Result([Counts("copy", 2, 1, 10, 5, {"why": 1})], {"pid": os.getpid()})


def write_pid(config):
    path = Path(f"{config.log}.pid")
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)  # who waits for it must not find it half written


def die(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if config.prefix == "always" or not Path(f"{config.log}.pid").exists():
        write_pid(config)
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(config, inputs, outputs)


def wait_to_be_killed(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if inputs[0].name == "a.in" and not Path(f"{config.log}.pid").exists():
        write_pid(config)
        time.sleep(300)
    return copy(config, inputs, outputs)


def fail(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if config.prefix == "mistake":
        raise ConfigError("the setting is wrong")
    raise ValueError("a bug")


def forget(config, inputs, outputs):
    return Result()


def die_with_a_child(config, inputs, outputs):
    if Path(f"{config.log}.child").exists():
        return copy(config, inputs, outputs)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(f"{config.log}.child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def leave_more(config, inputs, outputs):
    outputs[0].with_suffix(".scratch").write_bytes(b"a temporary file of the stage's own")
    return copy(config, inputs, outputs)


def change_code(config, inputs, outputs):
    Path(config.prefix).write_text("x = 2")  # as if someone had installed another version
    outputs[0].write_bytes(b"")
    return Result()


def die_once(path):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def sleep(seconds):
    time.sleep(seconds)


def identity(value):
    return value * 2
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "stage_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "stage_functions", raising=False)
    import stage_functions

    return stage_functions


@pytest.fixture
def sources(tmp_path):
    paths = [tmp_path / f"{name}.in" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


class InThisProcess:
    """An executor without processes, for tests of what they do not matter for."""

    def __init__(self, n_workers):
        pass

    def run(self, function, jobs, *, name):
        yield from ((index, function(job)) for index, job in enumerate(jobs))

    def longest(self):
        return None

    def close(self):
        pass


def run(folder, function, sources, config, n_workers=1, executor=LocalWorkers):
    quiet = Progress(Console(quiet=True))
    with Workspace(folder, n_workers=n_workers, progress=quiet, executor=executor) as workspace:
        stage = Stage("copy", function, modules=("counts",), packages=("numpy",))
        tasks = [Task(config, (path,), (workspace.folder / "copy" / f"{path.stem}.out",)) for path in sources]
        return workspace.run(stage, tasks)


def test_a_second_run_does_nothing_and_a_change_does_what_it_must(tmp_path, functions, sources):
    log = tmp_path / "log"

    def did(prefix="p"):
        log.write_text("")
        finished = run(tmp_path / "w", functions.copy, sources, functions.Config(prefix, log))
        assert [f.counts for f in finished] == [[Counts("copy", 2, 1, 10, 5, {"why": 1})]] * 3
        return sorted(log.read_text().split())

    assert did() == ["a.in", "b.in", "c.in"]
    assert (tmp_path / "w/copy/b.out").read_text() == "pb.in"
    assert did() == []
    sources[1].write_text("changed")
    assert did() == ["b.in"]
    (tmp_path / "w/copy/c.out").write_text("spoilt")
    assert did() == ["c.in"], "a file that exists is not a file that is done"
    (tmp_path / "w/copy/a.out").unlink()
    assert did() == ["a.in"]
    assert did("q") == ["a.in", "b.in", "c.in"]
    assert did("p") == ["a.in", "b.in", "c.in"], "its outputs were written over since"
    lines = [json.loads(line) for line in (tmp_path / "w/manifest.jsonl").read_text().splitlines()]
    entry = next(line for line in lines if line.get("stage") == "copy")
    assert {"key", "inputs", "outputs", "counts", "facts", "elapsed_s", "finished_at", "versions"} <= entry.keys()
    assert entry["outputs"][0]["bytes"] == 5


def test_a_manifest_that_was_cut_off_or_damaged_costs_only_its_bad_lines(tmp_path, functions, sources):
    log = tmp_path / "log"
    run(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    manifest = tmp_path / "w/manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    tasks = [i for i, line in enumerate(lines) if b'"stage"' in line]
    lines[tasks[0]] = lines[tasks[0]][:20] + b"\xff" + lines[tasks[0]][20:]
    lines[tasks[2]] = lines[tasks[2]][:-9]
    manifest.write_bytes(b"".join(lines))
    log.write_text("")
    run(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    assert sorted(log.read_text().split()) == ["a.in", "c.in"]
    log.write_text("")
    run(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    assert log.read_text() == "", "what was written after the cut counts"


def test_changed_code_runs_again_and_changed_comments_do_not(tmp_path, functions, sources, monkeypatch):
    package = tmp_path / "code" / "somepackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    log = tmp_path / "log"

    def did(source):
        (package / "part.py").write_text(source)
        log.write_text("")
        with Workspace(tmp_path / "w", n_workers=1, progress=Progress(Console(quiet=True))) as workspace:
            stage = Stage("copy", functions.copy, modules=("somepackage.part",))
            workspace.run(stage, [Task(functions.Config("p", log), (sources[0],), (workspace.folder / "a.out",))])
        return log.read_text().split()

    assert did("x = 1") == ["a.in"]
    assert did("# the same\nx  =  1\n") == []
    assert did("x = 2") == ["a.in"]


def test_a_worker_that_is_killed_is_replaced_and_its_task_done(tmp_path, functions, sources):
    finished = run(tmp_path / "w", functions.die, sources[:1], functions.Config("p", tmp_path / "log"))
    assert (tmp_path / "w/copy/a.out").read_text() == "pa.in"
    assert finished[0].facts["pid"] != int((tmp_path / "log.pid").read_text())
    assert list((tmp_path / "w").rglob(".*tmp*")) == []


def test_a_worker_killed_from_outside_while_others_work(tmp_path, functions, sources):
    """A real SIGKILL from another process, as the kernel's out-of-memory killer sends it."""
    script = textwrap.dedent(
        f"""
        import os, signal, time
        from pathlib import Path
        mark = Path({str(tmp_path / "log.pid")!r})
        while not mark.exists():
            time.sleep(0.02)
        os.kill(int(mark.read_text()), signal.SIGKILL)
        """
    )
    killer = subprocess.Popen([sys.executable, "-c", script])
    run(tmp_path / "w", functions.wait_to_be_killed, sources, functions.Config("p", tmp_path / "log"), n_workers=2)
    assert killer.wait(timeout=30) == 0
    assert [(tmp_path / f"w/copy/{name}.out").read_text() for name in "abc"] == ["pa.in", "pb.in", "pc.in"]


def test_a_task_that_kills_its_worker_twice_is_an_error_that_names_it(tmp_path, functions, sources):
    with pytest.raises(ConfigError, match=r"stage 'copy' of a\.in: its worker was killed by SIGKILL, twice"):
        run(tmp_path / "w", functions.die, sources[:1], functions.Config("always", tmp_path / "log"))
    assert list((tmp_path / "w/copy").iterdir()) == []


def test_a_dead_worker_is_noticed_when_its_child_lives_on(tmp_path, functions, sources):
    run(tmp_path / "w", functions.die_with_a_child, sources[:1], functions.Config("p", tmp_path / "log"))
    os.kill(int((tmp_path / "log.child").read_text()), signal.SIGKILL)
    assert (tmp_path / "w/copy/a.out").read_text() == "pa.in"


def test_half_an_answer_is_no_answer():
    """A worker dies while it sends, and something that it forked holds its end of the pipe open."""
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"the first part of a message of 1000 bytes")
    _end_of_stream(ours)
    assert _receive(ours) is None
    theirs.close()


def test_a_worker_that_died_while_idle_costs_no_job_an_attempt(tmp_path, functions):
    workers = LocalWorkers(1)
    try:
        assert list(workers.run(functions.identity, [1])) == [(0, 2)]
        before = workers._workers[0].process
        os.kill(before.pid, signal.SIGKILL)
        before.join()
        # The job itself ends a worker too, and a job may do that once.
        assert list(workers.run(functions.die_once, [tmp_path / "mark"])) == [(0, "done")]
        assert workers.longest() is None
    finally:
        workers.close()


def test_the_longest_job_is_known_while_it_runs(functions):
    workers, seen = LocalWorkers(2), []
    try:
        for _ in workers.run(functions.sleep, [0.0, 30.0], name=lambda seconds: f"a sleep of {seconds} s"):
            seen.append(workers.longest())
            break
    finally:
        pid = next(worker.process.pid for worker in workers._workers if worker.job is not None)
        workers.close()  # in the middle of a job
    assert seen[0].name == "a sleep of 30.0 s"
    assert seen[0].where == f"pid {pid}"
    assert not _is_running(pid)


def test_only_outputs_reach_the_folder(tmp_path, functions, sources):
    run(tmp_path / "w", functions.leave_more, sources, functions.Config("p", tmp_path / "log"))
    assert sorted(path.name for path in (tmp_path / "w/copy").iterdir()) == ["a.out", "b.out", "c.out"]
    assert list((tmp_path / "w").rglob("*.scratch")) == []


def test_code_that_changes_during_a_run_is_an_error(tmp_path, functions, sources):
    package = tmp_path / "code" / "changing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("x = 1")
    with Workspace(tmp_path / "w", n_workers=1, progress=Progress(Console(quiet=True))) as workspace:
        stage = Stage("copy", functions.change_code, modules=("changing.part",))
        config = functions.Config(str(package / "part.py"), tmp_path / "log")
        tasks = [Task(config, (path,), (workspace.folder / path.stem,)) for path in sources]
        with pytest.raises(ConfigError, match=r"of b\.in: the worker on .* another installation .*changing\.part"):
            workspace.run(stage, tasks)


def test_the_manifest_says_what_made_a_file(tmp_path, functions, sources):
    run(tmp_path / "w", functions.copy, sources, functions.Config("p", tmp_path / "log"))
    lines = [json.loads(line) for line in (tmp_path / "w/manifest.jsonl").read_text().splitlines()]
    (entry,) = [line for line in lines if line.get("inputs", [{}])[0].get("path") == str(sources[0])]
    assert entry["counts"] == [Counts("copy", 2, 1, 10, 5, {"why": 1}).as_dict()]
    facts = {"path": "copy/a.out", "bytes": 5, "digest": xxhash.xxh3_128_hexdigest(b"pa.in")}
    assert entry["outputs"] == [{**facts, "mtime_ns": (tmp_path / "w/copy/a.out").stat().st_mtime_ns}]
    given = {"path": str(sources[0]), "bytes": 4, "digest": xxhash.xxh3_128_hexdigest(b"a.in")}
    assert entry["inputs"] == [given]
    assert entry["versions"] == {"python": platform.python_version(), "numpy": np.__version__}
    assert 0 < entry["elapsed_s"] < 60
    (settings,) = [line for line in lines if line.get("of_tasks") == entry["settings"]]
    assert settings["config"] == {"prefix": "p", "log": str(tmp_path / "log")}
    assert settings["of"] == "copy"
    assert list(settings["code"]) == ["counts"]


def test_a_full_disk_at_any_moment_leaves_nothing_half(tmp_path, functions, sources):
    """A real file system with 0 to 12 free pages: output, folder, manifest and what the run says of itself meet it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    errors = []
    try:
        for free_pages in range(13):
            work, filler = small / "w", small / "filler"
            shutil.rmtree(work, ignore_errors=True)
            run(work, functions.copy, sources[:1], functions.Config("first", tmp_path / "log"), executor=InThisProcess)
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)) == 4096:
                    pass
            os.truncate(filler, max(0, filler.stat().st_size - 4096 * free_pages))
            config = functions.Config("p" * 3000, tmp_path / "log")
            try:
                run(work, functions.copy, sources, config, executor=InThisProcess)
            except ConfigError as error:
                errors.append(str(error))
            filler.unlink()
            for line in (work / "manifest.jsonl").read_text().splitlines():
                for output in json.loads(line).get("outputs", []):
                    path = work / output["path"]
                    if path.name != "a.out" or path.stat().st_size == output["bytes"]:  # else of the first run
                        assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == output["digest"]
            assert list(work.rglob("*tmp*")) == []
            run(work, functions.copy, sources, config, executor=InThisProcess)
            written = [(work / f"copy/{name}.out").read_text() for name in "abc"]
            assert written == [f"{config.prefix}{name}.in" for name in "abc"]
        assert 3 < len(errors) < 13
        assert all("the disk is full" in error and "\n" not in error for error in errors)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_failures_leave_no_output(tmp_path, functions, sources):
    with pytest.raises(ConfigError, match=r"^the setting is wrong$"):
        run(tmp_path / "w", functions.fail, sources, functions.Config("mistake", tmp_path / "log"))
    with pytest.raises(RuntimeError, match="ValueError: a bug"):
        run(tmp_path / "w", functions.fail, sources, functions.Config("bug", tmp_path / "log"))
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        run(tmp_path / "w", functions.forget, sources, functions.Config("", tmp_path / "log"))
    assert list((tmp_path / "w/copy").iterdir()) == []


def test_two_runs_in_one_folder(tmp_path):
    quiet = Progress(Console(quiet=True))
    with (
        Workspace(tmp_path, n_workers=1, progress=quiet),
        pytest.raises(ConfigError, match="another run is working in this folder"),
        Workspace(tmp_path, n_workers=1, progress=quiet),
    ):
        pass
    with Workspace(tmp_path, n_workers=1, progress=quiet):
        pass


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_their_owner(tmp_path, functions, busy):
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        from data_prep.workers import LocalWorkers
        import stage_functions
        if __name__ == "__main__":
            workers = LocalWorkers(2)
            assert sorted(workers.run(stage_functions.identity, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]
            print(*[worker.process.pid for worker in workers._workers], flush=True)
            if BUSY:
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                list(workers.run(stage_functions.sleep, [300, 300]))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    (tmp_path / "code" / "owner.py").write_text(script.replace("BUSY", str(busy)))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "code" / "owner.py")],
        stdout=subprocess.PIPE,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path / 'code'}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for _ in range(500):
        alive = [pid for pid in pids if _is_running(pid)]
        if not alive:
            break
        time.sleep(0.02)
    assert alive == []


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_workers_of_no_number():
    with pytest.raises(ConfigError, match="workers = 0"):
        LocalWorkers(0)


def test_a_full_disk_is_one_line(tmp_path):
    """A real full file system: a tmpfs of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        path = tmp_path / "big"
        with (
            pytest.raises(ConfigError, match=r"big: the disk is full \([\d,]+ bytes free in ") as caught,
            disk_errors(path),
        ):
            path.write_bytes(bytes(1 << 20))
        assert "\n" not in str(caught.value)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_counts_must_add_up():
    tally = Tally("step")
    tally.keep(10, 8)
    tally.drop("short", 3)
    tally.drop("short", 4)
    counts = tally.counts()
    assert counts == Counts("step", 3, 1, 17, 8, {"short": 2}, {"4": 1})
    assert Counts(**counts.as_dict()) == counts
    assert total([counts, Counts("other"), counts]) == [
        Counts("step", 6, 2, 34, 16, {"short": 4}, {"4": 2}),
        Counts("other"),
    ]
    with pytest.raises(AssertionError, match="cannot account for 1 of its 3 documents"):
        Counts("step", 3, 1, dropped={"short": 1})
