"""Run the child process that extracts pages: its limits, its death, and how little it imports."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import data_prep
from data_prep.documents.records import Page
from data_prep.execution.child_frames import OUT_OF_MEMORY, SIZE, TEXT
from data_prep.execution.child_process import Child
from data_prep.extraction.extract import extract_texts
from data_prep.extraction.page_child import PAGE
from data_prep.extraction.page_sandbox import Failure, PageSandbox
from data_prep.extraction.page_text import ExtractConfig
from gpt.errors import ConfigError

pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")

GOOD = b"<p>" + b"An ordinary page between the others. " * 20


def test_the_result_for_a_page_does_not_depend_on_earlier_pages():
    """A page that ends its child is dropped; the pages around it keep their texts."""
    hog = Page("hog", b"<table><tr><td>" * 300_000, None, True, {})
    nice = [Page(str(n), GOOD, None, True, {}) for n in range(40)]
    config = ExtractConfig(max_page_memory_bytes=100 << 20)
    texts = [text for _, text in extract_texts([*nice[:20], hog, *nice[20:], hog], config)]
    assert [type(text) for text in texts] == [str] * 20 + [Failure] + [str] * 20 + [Failure]
    assert {text.reason for text in texts if isinstance(text, Failure)} == {"out_of_memory"}


def test_a_child_killed_from_outside_loses_no_page():
    pages = [Page(str(n), GOOD + b"%d" % n, None, True, {}) for n in range(20)]
    with PageSandbox(ExtractConfig()) as sandbox:
        for _ in range(3):
            sandbox.submit(pages)
            os.kill(sandbox.child_pid, signal.SIGKILL)
            assert [text[-2:] for text in sandbox.collect()] == [f"{n}"[-2:].rjust(2) for n in range(20)]


def test_a_page_over_the_time_limit_is_named():
    deep = Page("deep", b"<div>" * 100_000 + b"x", None, True, {})
    with PageSandbox(ExtractConfig(max_page_cpu_s=0.3)) as sandbox:
        sandbox.submit([Page("first", GOOD, None, True, {}), deep, Page("last", GOOD, None, True, {})])
        first, failure, last = sandbox.collect()
    assert first == last
    assert failure == Failure("timed_out", "more than 0.3 s of processor time")


def test_the_child_answers_a_batch_with_one_frame_a_page():
    child = Child("data_prep.extraction.page_child", dataclasses.asdict(ExtractConfig()))
    facts = json.dumps([None, False]).encode()
    texts = [b"one", b"two"]
    child.send([SIZE.pack(len(texts)), *(PAGE.pack(len(facts), len(text)) + facts + text for text in texts)])
    assert [child.receive(60.0) for _ in texts] == [(TEXT, "one"), (TEXT, "two")]
    html = b"<table><tr><td>" * 1_000_000
    facts = json.dumps([None, True]).encode()
    child.send([SIZE.pack(1), PAGE.pack(len(facts), len(html)) + facts, html])
    answer = child.receive(60.0)
    assert answer is None or answer[0] == OUT_OF_MEMORY
    assert not child.end().stuck


@pytest.mark.parametrize("module", ["data_prep.extraction.page_child", "data_prep.readers.parquet_child"])
def test_a_child_imports_little(module):
    """Each import takes time at the start and memory below the limit."""
    code = f"import sys, {module}; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(data_prep.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] in ("data_prep", "gpt")}
    ours = {"data_prep.documents.shards", "data_prep.execution.child_frames", module}
    allowed = {*ours, "gpt.errors", "gpt.files.json_text"}
    packages = {name.rpartition(".")[0] for name in (*allowed, "data_prep.extraction.page_text")}
    assert loaded - packages - {"data_prep", "data_prep.extraction.page_text"} <= allowed
    assert not {"numpy", "subprocess", "multiprocessing", "pyarrow", "resiliparse"} & set(done.stdout.split())


def test_a_missing_library_is_reported_by_the_child(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with (
        pytest.raises(ConfigError, match="the package 'resiliparse' is not installed"),
        PageSandbox(ExtractConfig()) as sandbox,
    ):
        sandbox.submit([Page("a", GOOD, None, True, {})])
