"""Write and read the manifests of a work folder."""

import json

import pytest

from data_prep.execution.files import describe_file
from data_prep.execution.manifest import WorkManifest

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_a_damaged_line_costs_only_its_own_task(tmp_path, functions, sources, run_stage):
    log = tmp_path / "log"
    run_stage(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    manifest = tmp_path / "w/manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    tasks = [i for i, line in enumerate(lines) if b'"stage"' in line]
    lines[tasks[0]] = lines[tasks[0]][:20] + b"\xff" + lines[tasks[0]][20:]
    lines[tasks[2]] = lines[tasks[2]][:-9]
    manifest.write_bytes(b"".join(lines))
    log.write_text("")
    run_stage(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    assert sorted(log.read_text().split()) == ["a.in", "c.in"]
    log.write_text("")
    run_stage(tmp_path / "w", functions.copy, sources, functions.Config("p", log))
    assert log.read_text() == "", "lines written after the cut count"


@pytest.fixture
def manifest(tmp_path):
    manifests = []

    def make(name="manifest.jsonl"):
        manifests.append(WorkManifest(tmp_path))
        manifests[-1].open_own(name)
        return manifests[-1]

    yield make
    for one in manifests:
        one.close()


def entry(folder, key, *names):
    """An entry of a task whose outputs are these files of the folder."""
    outputs = [{"path": name, **describe_file(folder / name)} for name in names]
    return {"key": key, "stage": "copy", "outputs": outputs}


def test_every_writer_reads_the_lines_of_all(tmp_path, manifest):
    (tmp_path / "a").write_text("one")
    first, second = manifest("manifest-1-of-2.jsonl"), manifest("manifest-2-of-2.jsonl")
    first.append(entry(tmp_path, "00ff", "a"))
    second.append({"of_tasks": "shared", "code": {}})
    assert second.entry("00ff") is None
    first.refresh()
    second.refresh()
    assert second.entry("00ff")["stage"] == "copy"
    assert first.has_shared("shared")
    assert first.is_intact(second.entry("00ff"))
    assert [line["key"] for line in first.entries()] == ["00ff"]


def test_a_digest_holds_for_the_file_as_it_was(tmp_path, manifest):
    (tmp_path / "a").write_text("one")
    one = manifest()
    assert one.digest(tmp_path / "a") is None
    facts = describe_file(tmp_path / "a")
    one.append({"file": {"path": str(tmp_path / "a"), **facts}})
    assert one.digest(tmp_path / "a") == facts["digest"]
    assert one.n_bytes(tmp_path / "a") == 3
    (tmp_path / "a").write_text("other")
    assert one.digest(tmp_path / "a") is None
    assert one.n_bytes(tmp_path / "a") == 3, "the size when it was recorded"


def test_an_unfinished_line_is_removed_before_the_next(tmp_path, manifest):
    (tmp_path / "manifest.jsonl").write_text('{"of_tasks": "whole"}\n{"of_tas')
    manifest().append({"of_tasks": "next"})
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["of_tasks"] for line in lines] == ["whole", "next"]
