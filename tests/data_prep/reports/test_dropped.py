"""Examples of the documents that a run dropped."""

import io
import json

import pytest
from rich.console import Console

from data_prep.documents.shards import Document, write_shard
from data_prep.documents.traces import Drop, write_trace
from data_prep.reports.dropped import EACH, dropped_documents
from data_prep.reports.table import show_dropped
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.fixture
def work(tmp_path):
    """A run whose second stage dropped "d0" to "d9" as short, and "e" as long."""
    steps = [{"stage": name, "ending": ".jsonl.zst", "names": ["s"]} for name in ("extract", "quality")]
    (tmp_path / "steps.json").write_text(json.dumps({"finished": True, "steps": steps}))
    short = [Drop(f"d{i}", "gopher", "short", 10, "9 words") for i in range(10)]
    for name, drops in (("extract", []), ("quality", [*short, Drop("e", "c4", "long", 10)])):
        (tmp_path / name).mkdir()
        with write_trace(tmp_path / name / "s.dropped.jsonl.zst") as trace:
            for drop in drops:
                trace.add(drop)
    with write_shard(tmp_path / "extract/s.jsonl.zst") as write:
        for name in (*(f"d{i}" for i in range(10)), "e", "kept"):
            write(Document(name, f"text of\x1b[2J {name}"))
    return tmp_path


def test_each_reason_has_examples_with_text(work):
    found = dropped_documents(work)
    assert found.counts == {("gopher", "short"): 10, ("c4", "long"): 1}
    assert [example.drop.id for example in found.examples] == [*(f"d{i}" for i in range(EACH)), "e"]
    assert found.folders == [work / "quality"]
    out = io.StringIO()
    show_dropped(found, Console(file=out, width=200))
    assert "gopher: short: 10 documents\n  d0: 10 bytes (9 words)\n    text of" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_one_step_may_be_asked_for(work):
    assert [example.drop.id for example in dropped_documents(work, "c4").examples] == ["e"]
    with pytest.raises(ConfigError, match=r"no document at such a step. did you mean 'gopher'"):
        dropped_documents(work, "goper")
    (work / "extract/s.jsonl.zst").unlink()  # output.keep_intermediate = false
    assert [example.text for example in dropped_documents(work, "c4").examples] == [""]


def test_a_page_looks_at_the_first_shards_only(work):
    assert dropped_documents(work, most_shards=0).examples == []
    found = dropped_documents(work, most_shards=1).examples
    assert found == dropped_documents(work).examples
