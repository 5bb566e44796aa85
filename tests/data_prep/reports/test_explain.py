"""Find out what happened to one document of a run."""

import io
import json

import pytest
from rich.console import Console

from data_prep.corpus.split import SplitConfig
from data_prep.documents.shards import Document, piece_id, write_shard
from data_prep.documents.traces import Drop, write_trace
from data_prep.inputs.config import InputConfig
from data_prep.reports.explain import explain, explain_file, explain_url
from data_prep.reports.table import show_fates, show_file
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.fixture
def work(tmp_path):
    """A run of two steps over one shard: "a" is dropped by the second, "b" is kept in two pieces, "c" is whole."""
    steps = [{"stage": name, "ending": ".jsonl.zst", "names": ["s"]} for name in ("extract", "decontaminate")]
    (tmp_path / "steps.json").write_text(json.dumps({"finished": True, "steps": steps}))
    for name, drops in (("extract", []), ("decontaminate", [Drop("a", "decontaminate", "too_short", 10, "9 words")])):
        (tmp_path / name).mkdir()
        with write_trace(tmp_path / name / "s.dropped.jsonl.zst") as trace:
            for drop in drops:
                trace.add(drop)
    with write_shard(tmp_path / "decontaminate/s.jsonl.zst") as write:
        for name in (piece_id("b", 0), piece_id("b", 1), "c"):
            write(Document(name, f"text of {name}"))
    return tmp_path


def test_a_dropped_document_has_its_step_and_reason(work):
    (fate,) = explain(work, "<a>")
    assert fate.steps == ("extract",)
    assert (fate.dropped.step, fate.dropped.reason, fate.dropped.detail) == ("decontaminate", "too_short", "9 words")
    assert fate.shard == work / "decontaminate/s.dropped.jsonl.zst"


def test_a_kept_document_has_its_pieces(work):
    (fate,) = explain(work, "b")
    assert fate.dropped is None
    assert fate.steps == ("extract", "decontaminate")
    assert [document.id for document in fate.kept] == ["b#piece-0", "b#piece-1"]
    (fate,) = explain(work, "b#piece-1")
    assert [document.id for document in fate.kept] == ["b#piece-1"]


def test_a_url_finds_its_documents(work):
    with write_shard(work / "extract/s.jsonl.zst") as write:
        write(Document("a", "text of a", {"url": "https://example.org/a"}))
        write(Document("b", "text of b", {"url": "https://example.org/b"}))
    (dropped,) = explain_url(work, "https://example.org/a")
    assert (dropped.steps, dropped.dropped.reason) == (("extract",), "too_short")
    (kept,) = explain_url(work, "https://example.org/b")
    assert [document.id for document in kept.kept] == ["b#piece-0", "b#piece-1"]
    with pytest.raises(ConfigError, match=r"no document with the URL https://example.org/c passed the first step"):
        explain_url(work, "https://example.org/c")


def test_an_unknown_document_is_an_error(work, tmp_path):
    with pytest.raises(ConfigError, match=r"no document 'd' was read or dropped by the last run"):
        explain(work, "d")
    with pytest.raises(ConfigError, match=r"Run `triaxial prepare` on this recipe first"):
        explain(tmp_path / "elsewhere", "a")


def test_fates_are_printed_step_by_step(work, tmp_path):
    text = io.StringIO()
    show_fates([*explain(work, "a"), *explain(work, "c")], SplitConfig(0.01, 0), Console(file=text, width=200))
    assert "extract: passed\ndecontaminate: dropped, too_short (9 words); 10 bytes\n" in text.getvalue()
    assert "kept as c in the training split; 9 bytes" in text.getvalue()
    assert "bytes; \n" not in text.getvalue(), "no separator before nothing"


def test_the_documents_of_a_file_are_found(work, tmp_path):
    path = tmp_path / "input.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "x"}\n{"id": "elsewhere", "text": "x"}\n')
    config = InputConfig(paths=("x",))
    dropped, kept = explain_file(work, path, config)
    assert dropped.dropped.id == "a"
    assert [document.id for document in kept.kept] == ["b#piece-0", "b#piece-1"]
    text = io.StringIO()
    show_file([dropped, kept], SplitConfig(0.01, 0), Console(file=text, width=200))
    assert text.getvalue().startswith("1 documents: dropped by decontaminate, too_short\n1 documents: kept\n")
    path.write_text('{"id": "elsewhere", "text": "x"}\n')
    with pytest.raises(ConfigError, match="none of its 1 documents was read by the last run"):
        explain_file(work, path, config)
    path.write_text("")
    with pytest.raises(ConfigError, match="the file holds no documents"):
        explain_file(work, path, config)
