"""Evaluation sets are read completely, or the run stops."""

import gzip
import json
from pathlib import Path

import pytest

from data_prep.decontamination.evaluation_sets import EvaluationSet, find_set_files, read_examples
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def texts(name: str, path: Path, **settings) -> list[tuple[str, str]]:
    one = EvaluationSet(name, (str(path),), **settings)
    (files,) = find_set_files((one,), where="sets")
    return [(example.id, example.text) for example in read_examples(one, files)]


RECORDS = [
    {"id": "q1", "question": "Who?", "choices": {"text": ["a b", "c"], "label": [1, 2]}, "answer": 7},
    {"id": 2, "question": "Why?", "choices": {"text": ["d"], "label": [1]}, "answer": None},
]


def test_kinds_of_files_give_the_same_examples(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    typed = [{**record, "id": str(record["id"])} for record in RECORDS]
    table = arrow.Table.from_pylist(typed)
    parquet.write_table(table, tmp_path / "a.parquet")
    with arrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:  # as Hugging Face's cache does
        stream.write_table(table)
    asked = [("q1", "Who?\na b\nc\n7"), ("2", "Why?\nd")]
    for ending in ("jsonl", "jsonl.gz", "json", "parquet", "arrow"):
        path = tmp_path / f"a.{ending}"
        assert texts("s", path, fields=("question", "choices.text", "answer")) == asked, ending
        assert texts("s", path) == [("q1", "Who?\na b\nc"), ("2", "Why?\nd")], "every text but the id"
    (tmp_path / "b.txt").write_text("one\ntwo\n\nthree")
    assert texts("s", tmp_path / "b.txt") == [("", "one\ntwo\n\nthree")]
    assert texts("s", tmp_path / "b.txt", text_separator="\n\n") == [("", "one\ntwo"), ("", "three")]
    assert [e.index for e in read_examples(EvaluationSet("s", ("x",)), [tmp_path / "a.jsonl"] * 2)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl, record 2 is not a JSON object"),
        ("a.jsonl", b'{"other": "x"}\n', r"record 1 has none of the fields text \(it has: other\)"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500, mtime=0)[:-20], r"a\.jsonl\.gz is damaged or cut off"),
        ("a.parquet", b"no parquet", r"a\.parquet is not readable"),
        ("a.arrow", b"no arrow", r"a\.arrow is not readable"),
        ("a.pickle", b"", r"sets 's': '.*a\.pickle' is invalid: the ending is unknown\. Use files that end in \.jsonl"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_run(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        texts("s", tmp_path / name, fields=("text",))


def test_files_of_sets_are_found_or_an_error(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    twice = (EvaluationSet("s", (f"{tmp_path}/x.txt",)), EvaluationSet("s", (f"{tmp_path}/x.txt",)))
    with pytest.raises(ConfigError, match="two sets are named 's'"):
        find_set_files(twice, where="overlap.sets")
    with pytest.raises(ConfigError, match=r"overlap\.sets 't': no file matches"):
        find_set_files((EvaluationSet("t", (f"{tmp_path}/none*.txt",)),), where="overlap.sets")
    with pytest.raises(ConfigError, match="evaluation set 's': give both name and paths"):
        EvaluationSet("s", ())
