"""Apply stages to all shards of a run, and record its steps."""

import pytest
from rich.console import Console

from data_prep.documents.counts import Counts
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun, Step, loss_warning, read_steps
from data_prep.execution.tasks import Stage
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

FUNCTIONS = """
from data_prep.documents.counts import Counts
from data_prep.execution.tasks import TaskResult


def upper(config, inputs, outputs):
    text = "".join(path.read_text() for path in inputs)
    outputs[0].write_text(text.upper() + config)
    outputs[1].write_text("")
    return TaskResult([Counts("upper", 1, 1, len(text), len(text))], {"characters": len(text)})


def drop(config, inputs, outputs):
    for path in outputs:
        path.write_text("")
    return TaskResult([Counts("drop", 1, 0, dropped={"short": 1})])
"""


@pytest.fixture
def work(tmp_path, functions):
    (tmp_path / "code/shard_run_functions.py").write_text(FUNCTIONS)
    with Workspace(tmp_path / "w", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        yield ShardRun(workspace)


def test_shards_are_named_by_content_and_steps_recorded(tmp_path, sources, work):
    import shard_run_functions

    copy = tmp_path / "copy.in"
    copy.write_text(sources[0].read_text())
    shards = work.named([*sources, copy])
    assert len(shards) == 3, "equal files count once"
    after = work.map(Stage("upper", shard_run_functions.upper), "!", shards)
    assert sorted(path.read_text() for path in after.values()) == ["A.IN!", "B.IN!", "C.IN!"]
    both = work.map(Stage("both", shard_run_functions.upper), "", shards, extra_inputs=after)
    assert sorted(path.read_text() for path in both.values()) == ["A.INA.IN!", "B.INB.IN!", "C.INC.IN!"]
    assert work.counts == [Counts("upper", 3, 3, 12, 12), Counts("upper", 3, 3, 27, 27)]
    assert work.facts["upper"] == [{"characters": 4}] * 3
    assert work.seconds["upper"][0] == 3
    assert not read_steps(work.workspace.folder).finished
    work.finish()
    steps = read_steps(work.workspace.folder)
    assert steps.finished
    assert [step.stage for step in steps.done] == ["upper", "both"]
    assert steps.done[0].shards(work.workspace.folder) == list(after.values())


def test_a_step_that_leaves_no_document_is_an_error_with_its_reasons(sources, work):
    import shard_run_functions

    with pytest.raises(ConfigError, match=r"step 'drop' left none of its 3 documents \(dropped: short 3\); loosen"):
        work.map(Stage("drop", shard_run_functions.drop), None, work.named(sources))


def test_steps_that_are_missing_or_damaged_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"steps\.json: no such file\. Run `triaxial prepare`"):
        read_steps(tmp_path)
    (tmp_path / "steps.json").write_text('{"finished": true}')
    with pytest.raises(ConfigError, match=r"steps\.json: damaged"):
        read_steps(tmp_path)
    assert Step("s", ".x", ("a",)).traces(tmp_path) == [tmp_path / "s/a.dropped.jsonl.zst"]


def test_a_step_that_drops_much_says_so_with_its_rules():
    row = Counts("gopher", 100, 70, 1000, 420, {"short": 20, "symbols": 10})
    assert loss_warning(row) == (
        "warning: step 'gopher' dropped 30 of 100 documents (30%) and 58% of the bytes: short 20, symbols 10. "
        "`triaxial prepare RECIPE --dropped gopher` shows them"
    )
    assert "and 30% of the bytes: parts of documents" in loss_warning(Counts("c4", 100, 100, 1000, 700))
    assert loss_warning(Counts("gopher", 100, 90, 1000, 900, {"short": 10})) == ""
    pictures = Counts("read", 100, 21, 1000, 10, {"not_a_page": 75, "damaged": 4})
    assert loss_warning(pictures) == ""
    assert loss_warning(Counts("extract", 10, 10, 1000, 100)) == "", "markup is no loss"
