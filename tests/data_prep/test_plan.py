"""Plan a run: finished, stale and open tasks, sizes and times from finished ones; nothing is written."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workers import LocalWorkers
from data_prep.execution.workspace import Workspace
from data_prep.filters.language import LanguageConfig
from data_prep.filters.quality import QualityConfig
from data_prep.inputs.config import InputConfig
from data_prep.pipeline import check, prepare, run_stages
from data_prep.plan import plan
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.reports.plan import show_dry_run, show_status
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("pycld2", reason="the extra 'data' is not installed")

QUIET = ProgressBars(Console(quiet=True))
KNOWN = ["extract", "language", "exact_digests", "dedup_exact", "minhash_signatures", "dedup_minhash"]
KNOWN += ["train_tokenizer", "tokenize"]  # before any run; the steps between them depend on the findings of these


class InThisProcess:
    """An executor without processes that stops with an error after some tasks."""

    def __init__(self, n_workers):
        self.left = n_workers

    def run(self, function, jobs, *, name):
        for index, job in enumerate(jobs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield index, function(job)

    def longest(self):
        return None

    def close(self):
        pass


@pytest.fixture
def config(tmp_path, prose) -> PrepareConfig:
    for number in range(4):
        lines = [{"id": f"{number}-{n}", "text": prose(100 * number + n, 6)} for n in range(10)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return PrepareConfig(
        InputConfig(paths=(f"{tmp_path}/*.jsonl",)),
        OutputConfig(tmp_path / "corpus", validation_fraction=0.2),
        TokenizerConfig(vocab_size=400),
        quality=QualityConfig(rules=()),
    )


def shown(show, *args, **named):
    text = io.StringIO()
    show(*args, Console(file=text, width=150), **named)
    return text.getvalue()


def rows(text):
    """The table's numbers by stage."""
    return {
        words[0]: words[1:] for words in map(str.split, text.splitlines()) if len(words) > 3 and words[1].isdecimal()
    }


def test_before_a_run_the_plan_names_the_known_stages_and_no_sizes(tmp_path, config):
    found = plan(config)
    assert [stage.name for stage in found.stages] == KNOWN
    assert [stage.name for stage in found.stages if stage.more_follow] == [
        "exact_digests",
        "minhash_signatures",
        "tokenize",
    ]
    assert not found.is_complete
    assert [stage.n_to_do for stage in found.stages] == [4, 4, 4, 4, 4, 4, 1, 4]
    n_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    assert (found.source_files, found.source_bytes, found.unread_files) == (4, n_bytes, 4)
    assert found.stages[0].input_bytes == n_bytes
    assert [stage.input_bytes for stage in found.stages[1:]] == [None] * 7
    assert [stage.work_s for stage in found.stages] == [None] * 8
    text = shown(show_dry_run, found, config, n_workers=2)
    assert "4 files" in text
    assert "finished tasks, and there are none yet" in text
    assert f"--input.paths '[\"{tmp_path}/" in text
    assert text.count("  (and more, which depend on its findings)") == 3
    assert "to write: not known" in text
    assert "time with" not in text
    assert "runs: none so far" in shown(show_status, found, config)
    assert not (tmp_path / "corpus").exists()


def test_status_shows_finished_stale_and_open_tasks(tmp_path, config):
    with (
        pytest.raises(KeyboardInterrupt),
        Workspace(config.output.work_folder, n_workers=4 + 4 + 2, progress=QUIET, executor=InThisProcess) as workspace,
    ):
        run_stages(ShardRun(workspace), config, check(config))  # 4 digests, 4 extractions, 2 languages
    numbers = rows(shown(show_status, plan(config), config))
    assert numbers["extract"] == ["4", "4", "0", "0", "40", "40"]
    assert numbers["language"] == ["4", "2", "0", "2", "20", "20"]
    assert numbers["exact_digests"] == ["4", "0", "0", "4"]
    assert numbers["tokenize"] == ["4", "0", "0", "4"]
    text = shown(show_status, plan(config), config)
    assert "corpus: not written yet" in text
    assert "last finished task: language, " in text
    assert "stopped in language: KeyboardInterrupt" in text

    changed = replace(config, language=LanguageConfig(min_share=0.6))
    assert rows(shown(show_status, plan(changed), changed))["language"] == ["4", "0", "2", "2"]

    prepare(config, n_workers=100, progress=QUIET, executor=InThisProcess)
    text = shown(show_status, plan(config), config)
    assert all(row[:4] == [row[0], row[0], "0", "0"] for row in rows(text).values())
    assert {*KNOWN, "write_corpus"} < rows(text).keys()
    assert f"corpus: {tmp_path}/corpus/corpus.json\n" in text
    assert "finished at" in text
    min((tmp_path / "corpus/work/language").iterdir()).unlink()
    before = listing(tmp_path)
    numbers = rows(shown(show_status, plan(config), config))
    assert numbers["language"] == ["4", "3", "1", "0", "30", "30"]
    assert numbers["exact_digests"] == ["4", "3", "1", "0"], "its input will be made again"
    assert "of an earlier run" in shown(show_status, plan(config), config)
    assert "to write: at least" in shown(show_dry_run, plan(config), config, n_workers=2)
    assert listing(tmp_path) == before, "a plan changes nothing"


def listing(folder: Path):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_scales_the_cost_of_finished_tasks(tmp_path, config):
    """One file done, then three copies of it under other ids: three times the input, three times the rest."""
    first, rest = tmp_path / "0.jsonl", [tmp_path / f"{n}.jsonl" for n in (1, 2, 3)]
    one = replace(config, input=InputConfig(paths=(str(first),)))
    prepare(one, n_workers=100, progress=QUIET, executor=InThisProcess)
    for number, path in enumerate(rest, 1):
        path.write_text(first.read_text().replace('"id": "0-', f'"id": "{number}-'))
    found = {stage.name: stage for stage in plan(config).stages}
    work = tmp_path / "corpus/work"
    sizes = {stage: sum(path.stat().st_size for path in (work / stage).iterdir()) for stage in found}
    # The choice of copies runs again, so the tasks that depend on it are open, for the first file too.
    for stage, n in (("extract", 3), ("language", 3), ("exact_digests", 3), ("dedup_exact", 4), ("dedup_minhash", 4)):
        assert found[stage].n_to_do == n
        assert found[stage].output_bytes == pytest.approx(n * sizes[stage], rel=0.01), stage
    assert found["extract"].input_bytes == 3 * first.stat().st_size
    entries = [json.loads(line) for line in (work / "manifest.jsonl").read_text().splitlines()]
    seconds = {entry["stage"]: entry["elapsed_s"] for entry in entries if entry.get("stage") == "extract"}
    assert found["extract"].work_s == pytest.approx(3 * seconds["extract"], rel=0.01, abs=1e-3)
    text = shown(show_dry_run, plan(config), config, n_workers=2)
    assert "3 of them to be read for their digest" in text
    assert "time with 2 workers, estimated from finished tasks: at least " in text
    assert "not known: " not in text


def test_a_plan_raises_the_errors_of_a_runs_start(tmp_path, config):
    missing = replace(config, input=InputConfig(paths=(f"{tmp_path}/gone/*.jsonl",)))
    with pytest.raises(ConfigError, match="no file matches"):
        plan(missing)
    wrong = replace(config, tokenizer=TokenizerConfig(path=tmp_path / "gone.model"))
    with pytest.raises(ConfigError, match="no such tokenizer file"):
        plan(wrong)


def test_a_moved_work_folder_stays_finished(tmp_path, config):
    prepare(config, n_workers=2, progress=QUIET, executor=LocalWorkers)
    shutil.move(tmp_path / "corpus", tmp_path / "moved")
    moved = replace(config, output=OutputConfig(tmp_path / "moved", validation_fraction=0.2))
    assert [stage.n_to_do for stage in plan(moved).stages] == [0] * len(plan(moved).stages)
