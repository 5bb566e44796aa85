"""The manifest decides which tasks are finished; a failure or a full disk leaves no half output."""

import contextlib
import io
import json
import os
import pickle
import shutil

import pytest
from in_process import InThisProcess, flip_a_bit
from rich.console import Console

from data_prep.documents.counts import Counts
from data_prep.execution.damage import WrittenFile
from data_prep.execution.progress import ProgressBars
from data_prep.execution.tasks import Stage, Task, execute
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError

xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_a_second_run_does_only_the_tasks_that_a_change_concerns(tmp_path, functions, sources, run_stage):
    log = tmp_path / "log"

    def did(prefix="p"):
        log.write_text("")
        finished = run_stage(tmp_path / "w", functions.copy, sources, functions.Config(prefix, log))
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
    assert did("p") == ["a.in", "b.in", "c.in"], "its outputs have been overwritten since"
    lines = [json.loads(line) for line in (tmp_path / "w/manifest.jsonl").read_text().splitlines()]
    entry = next(line for line in lines if line.get("stage") == "copy")
    assert {"key", "inputs", "outputs", "counts", "facts", "elapsed_s", "finished_at", "versions"} <= entry.keys()
    assert entry["outputs"][0]["bytes"] == 5


def test_a_message_to_a_worker_does_not_grow_with_the_inputs_of_its_task(tmp_path, functions):
    """Each file of a corpus is made of all shards: their paths are in one file, for all tasks and all workers."""
    paths = [tmp_path / f"{n:05d}.in" for n in range(2000)]
    for path in paths:
        path.write_text("x")
    many, sizes = tuple(paths), []

    class Sender(InThisProcess):
        def run(self, function, jobs, *, name):
            sizes.extend(len(pickle.dumps(job)) for job in jobs)
            if function is execute:  # before that, it compares the inputs with their digests
                assert name(jobs[0]) == "stage 'join' of 00000.in, 00001.in, 00002.in and more"
                assert len(list((tmp_path / "w/.tmp").rglob("*.inputs"))) == 1
            yield from ((index, function(pickle.loads(pickle.dumps(job)))) for index, job in enumerate(jobs))

    config, quiet = functions.Config("p", tmp_path / "log"), ProgressBars(Console(quiet=True))
    with Workspace(tmp_path / "w", n_workers=1, progress=quiet, executor=Sender) as workspace:
        outputs = [workspace.folder / "join" / f"{n}.out" for n in range(3)]
        workspace.run(Stage("join", functions.join), [Task(config, many, (output,)) for output in outputs])
        assert [output.read_text() for output in outputs] == ["x" * 2000] * 3
    assert max(sizes) < 10_000


@pytest.mark.parametrize("limit", [10_000, 10])
def test_a_run_with_nothing_to_do_looks_at_each_file_once(tmp_path, functions, monkeypatch, limit):
    """In a folder above the limit, only the names are listed, so millions of files do not cost millions of requests."""
    monkeypatch.setattr("data_prep.execution.records._MAX_STATS", limit)
    sources, config = [tmp_path / f"{n}.in" for n in range(40)], functions.Config("p", tmp_path / "log")
    for path in sources:
        path.write_text(path.name)

    def did() -> tuple[int, int]:
        """(tasks done, checks of the files of three stages)"""
        looks = []
        (tmp_path / "log").write_text("")
        quiet = ProgressBars(Console(quiet=True))
        with (
            Workspace(tmp_path / "w", n_workers=1, progress=quiet, executor=InThisProcess) as workspace,
            monkeypatch.context() as patched,
        ):
            stat = os.stat
            patched.setattr(os, "stat", lambda path, **how: looks.append(str(path)) or stat(path, **how))
            inputs = sources
            for name in "abc":
                outputs = [workspace.folder / name / f"{path.stem}.out" for path in sources]
                pairs = zip(inputs, outputs, strict=True)
                workspace.run(Stage(name, functions.copy), [Task(config, (path,), (out,)) for path, out in pairs])
                inputs = outputs
        n_looks = sum(path.endswith((".in", ".out")) for path in looks)
        return len((tmp_path / "log").read_text().split()), n_looks

    assert did()[0] == 120
    assert did() == (0, 40 + 120 * (limit > 40)), "the sources, and the outputs if they are few"
    (tmp_path / "w/b/7.out").unlink()
    assert did()[0] == 1, "a missing file is made again, and equals the one before"


def test_changed_code_runs_again_and_changed_comments_do_not(tmp_path, functions, sources):
    """The stage function's own module stays as it is; the module that it imports changes."""
    code, log = tmp_path / "code", tmp_path / "log"
    (code / "importing_stage.py").write_text(
        "import imported_part\nimport stage_functions\n"
        "def copy(config, inputs, outputs): return stage_functions.copy(config, inputs, outputs)\n"
    )
    (code / "imported_part.py").write_text("x = 1")
    import importing_stage

    def did(source):
        (code / "imported_part.py").write_text(source)
        log.write_text("")
        with Workspace(tmp_path / "w", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
            stage = Stage("copy", importing_stage.copy)
            workspace.run(stage, [Task(functions.Config("p", log), (sources[0],), (workspace.folder / "a.out",))])
        return log.read_text().split()

    assert did("x = 1") == ["a.in"]
    assert did("# the same\nx  =  1\n") == []
    assert did("x = 2") == ["a.in"]


def test_only_declared_outputs_reach_the_folder(tmp_path, functions, sources, run_stage):
    run_stage(tmp_path / "w", functions.leave_more, sources, functions.Config("p", tmp_path / "log"))
    assert sorted(path.name for path in (tmp_path / "w/copy").iterdir()) == ["a.out", "b.out", "c.out"]
    assert list((tmp_path / "w").rglob("*.scratch")) == []


def test_code_that_changes_during_a_run_is_an_error(tmp_path, functions, sources):
    code = tmp_path / "code"
    (code / "changing_stage.py").write_text(
        "import changing_part\nimport stage_functions\n"
        "def change_code(*task): return stage_functions.change_code(*task)\n"
    )
    (code / "changing_part.py").write_text("x = 1")
    import changing_stage

    with Workspace(tmp_path / "w", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        stage = Stage("copy", changing_stage.change_code)
        config = functions.Config(str(code / "changing_part.py"), tmp_path / "log")
        tasks = [Task(config, (path,), (workspace.folder / path.stem,)) for path in sources]
        with pytest.raises(ConfigError, match=r"of b\.in: the worker .* another installation .*code of changing_part"):
            workspace.run(stage, tasks)


def test_a_full_disk_at_any_moment_leaves_no_half_file(tmp_path, functions, sources, small_disk, run_stage):
    """A real file system with 0 to 12 free pages: outputs, folders, the manifest and the status file hit its end."""
    small, errors = small_disk(128 << 10), []
    for free_pages in range(13):
        work, filler = small / "w", small / "filler"
        shutil.rmtree(work, ignore_errors=True)
        run_stage(
            work, functions.copy, sources[:1], functions.Config("first", tmp_path / "log"), executor=InThisProcess
        )
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        os.truncate(filler, max(0, filler.stat().st_size - 4096 * free_pages))
        config = functions.Config("p" * 3000, tmp_path / "log")
        try:
            run_stage(work, functions.copy, sources, config, executor=InThisProcess)
        except ConfigError as error:
            errors.append(str(error))
        filler.unlink()
        for line in (work / "manifest.jsonl").read_text().splitlines():
            for output in json.loads(line).get("outputs", []):
                path = work / output["path"]
                if path.name != "a.out" or path.stat().st_size == output["bytes"]:  # else of the first run
                    assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == output["digest"]
        assert list(work.rglob("*tmp*")) == []
        run_stage(work, functions.copy, sources, config, executor=InThisProcess)
        written = [(work / f"copy/{name}.out").read_text() for name in "abc"]
        assert written == [f"{config.prefix}{name}.in" for name in "abc"]
    assert 3 < len(errors) < 13
    assert all("the disk is full" in error and "\n" not in error for error in errors)


def test_failures_leave_no_output(tmp_path, functions, sources, run_stage):
    with pytest.raises(ConfigError, match=r"^the setting is wrong$"):
        run_stage(tmp_path / "w", functions.fail, sources, functions.Config("mistake", tmp_path / "log"))
    with pytest.raises(RuntimeError, match="ValueError: a bug"):
        run_stage(tmp_path / "w", functions.fail, sources, functions.Config("bug", tmp_path / "log"))
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        run_stage(tmp_path / "w", functions.forget, sources, functions.Config("", tmp_path / "log"))
    assert list((tmp_path / "w/copy").iterdir()) == []


def test_a_second_run_in_one_folder_is_an_error(tmp_path):
    quiet = ProgressBars(Console(quiet=True))
    with (
        Workspace(tmp_path, n_workers=1, progress=quiet),
        pytest.raises(ConfigError, match="another run is working in this folder"),
        Workspace(tmp_path, n_workers=1, progress=quiet),
    ):
        pass
    with Workspace(tmp_path, n_workers=1, progress=quiet):
        pass


def test_a_task_with_many_inputs_that_runs_again_reads_its_own(tmp_path, functions):
    """A flipped bit in the second of two tasks with 40 inputs each: it alone runs again, as the first of its stage."""
    groups = [tuple(tmp_path / f"{group}{n:02}.in" for n in range(40)) for group in "ab"]
    for path in (*groups[0], *groups[1]):
        path.write_text(path.name[0])
    said = io.StringIO()
    quiet, config = ProgressBars(Console(file=said, width=500)), functions.Config("", tmp_path / "log")
    with Workspace(tmp_path / "w", n_workers=1, progress=quiet, executor=InThisProcess) as workspace:
        joined = [workspace.folder / f"join/{n}" for n in range(2)]
        all_of_it = workspace.folder / "all/x"

        def steps():
            joins = [Task(config, group, (path,)) for group, path in zip(groups, joined, strict=True)]
            workspace.run(Stage("join", functions.join), joins)
            if "made again" not in said.getvalue():
                flip_a_bit(joined[1])
            workspace.run(Stage("all", functions.join), [Task(config, tuple(joined), (all_of_it,))])

        workspace.run_whole(steps)
        assert "join/1: its content is not what its task wrote. It is made again" in said.getvalue()
        assert all_of_it.read_text() == "a" * 40 + "b" * 40


def test_damage_in_a_file_of_another_corpus_names_that_corpus(tmp_path, functions, sources):
    reads = (WrittenFile(sources[1], "digest that the other run recorded"),)
    quiet = ProgressBars(Console(quiet=True))
    with Workspace(tmp_path / "w", n_workers=1, progress=quiet, executor=InThisProcess) as workspace:
        config = functions.Config("", tmp_path / "log")
        task = Task(config, (sources[0],), (workspace.folder / "a.out",), reads)
        with pytest.raises(ConfigError, match=r"b\.in is not as the run of its corpus wrote it\. Prepare that corpus"):
            workspace.run(Stage("copy", functions.copy), [task])


@pytest.mark.parametrize(("terminal", "lines"), [(True, ["warning: see", "/a/long/path/of/a/report"]), (False, None)])
def test_a_message_breaks_between_words_on_a_terminal_only(terminal, lines, tmp_path):
    text, message = io.StringIO(), "warning: see /a/long/path/of/a/report"
    progress = ProgressBars(Console(file=text, width=21, force_terminal=terminal))
    with Workspace(tmp_path / "w", n_workers=1, progress=progress) as workspace:
        workspace.say(message)
    assert [line.rstrip() for line in text.getvalue().splitlines()] == (lines or [message])
