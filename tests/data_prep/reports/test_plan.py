"""Print plans: what is done, what is to do, and which runs work in the folder."""

import io
import json
import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.documents.counts import Counts
from data_prep.execution.shares import ObservedRun, RunStatus
from data_prep.inputs.config import InputConfig
from data_prep.plan import PlanOfRun, StagePlan
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.reports.plan import show_dry_run, show_status

STATUS = RunStatus("node7", 77, "2026-01-01T00:00:00Z", "2/4", "working", 3, "extract", "digest", "")
KNOWN = StagePlan("extract", 8, 5, 1, [Counts("read", 9, 9), Counts("extract", 9, 7, 0, 0, {"empty": 2})], 3e6, 1e6, 60)
UNKNOWN = StagePlan("language", 8, 0, 0, [], None, None, None, more_follow=True)


@pytest.fixture
def config(tmp_path) -> PrepareConfig:
    return PrepareConfig(InputConfig(paths=("x",)), OutputConfig(tmp_path), TokenizerConfig(vocab_size=400))


def printed(show, *arguments, **named) -> str:
    text = io.StringIO()
    show(*arguments, Console(file=text, width=200), **named)
    return text.getvalue()


def test_status_shows_stages_and_the_state_of_every_run(config):
    runs = [
        ObservedRun(STATUS, True, 4.0),
        ObservedRun(STATUS, False, 400.0),
        ObservedRun(replace(STATUS, state="failed", message="the disk is full"), False, 5.0),
        ObservedRun(replace(STATUS, state="done", share=None), False, 5.0),
    ]
    text = printed(show_status, PlanOfRun([KNOWN, UNKNOWN], 8, 100, 0, None, runs, False), config)
    assert ["extract", "8", "5", "1", "2", "9", "7"] in [line.split() for line in text.splitlines()]
    who = "pid 77 on node7, since 2026-01-01T00:00:00Z"
    assert f"share 2/4: {who}: working in extract, last sign of life 4 s ago\n" in text
    assert f"share 2/4: {who}: died in extract, or its machine did; last sign of life 7 min ago\n" in text
    assert f"share 2/4: {who}: stopped in extract: the disk is full\n" in text
    assert f"run: {who}: finished at 20" in text


def test_a_dry_run_shows_sizes_and_names_the_stages_without_an_estimate(config):
    text = printed(show_dry_run, PlanOfRun([KNOWN, UNKNOWN], 8, 100, 2, None, [], False), config, n_workers=2)
    assert "input: 8 files, 100 B, 2 of them to be read for their digest\n" in text
    assert "not known: size and time of language; " in text
    assert "to write: at least 1.0 MB; " in text
    assert "time with" not in text
    text = printed(show_dry_run, PlanOfRun([KNOWN], 8, 100, 0, None, [], True), config, n_workers=2)
    assert "time with 2 workers, estimated from finished tasks: about 30 s" in text
    done = replace(KNOWN, n_done=8)
    assert "nothing to do" in printed(show_dry_run, PlanOfRun([done], 8, 100, 0, None, [], True), config, n_workers=1)


def test_the_first_dry_run_says_how_to_get_estimates_and_has_no_question_marks(config, tmp_path):
    first = replace(UNKNOWN, name="extract", input_bytes=100.0)
    plan = PlanOfRun([first, UNKNOWN], 8, 100, 8, None, [], False, tmp_path / "a b.txt")
    text = printed(show_dry_run, plan, config, n_workers=2)
    assert "?" not in text
    assert ["extract", "8", "0", "8", "100", "B"] in [line.split() for line in text.splitlines()]
    (command,) = (line.strip() for line in text.splitlines() if "triaxial prepare" in line)
    assert shlex.split(command)[3:] == [
        "--input.paths",
        json.dumps([str(tmp_path / "a b.txt")]),
        "--output.work",
        str(config.output.work_folder),
        "--output.folder",
        str(config.output.work_folder / "try"),
    ]
