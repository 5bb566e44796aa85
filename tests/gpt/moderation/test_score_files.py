"""Score files of all forms give the same scores; faults name their line."""

import gzip
import json

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.score_files import all_scores, read_scores, score_categories

RECORDS = [
    {"id": "a", "scores": {"S": 0.25, "H": 1}, "groups": {"language": "en"}},
    {"id": "b", "scores": {"H": 0.5, "S": 0.0}, "groups": {"language": None}},
    {"id": "c", "scores": {"S": 0.75, "H": 0.125}, "text": "boats"},
]


def write(path, records):
    data = "\n".join(map(json.dumps, records)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.parquet"])
def test_reads_every_form(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [one | {"groups": json.dumps(one.get("groups", {}))} for one in RECORDS]
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        write(path, RECORDS)
    assert score_categories(path) == ("S", "H")
    found = all_scores([path], ("H", "S"))
    assert found.ids == ["a", "b", "c"]
    np.testing.assert_array_equal(found.scores, [[1, 0.25], [0.5, 0], [0.125, 0.75]])
    assert list(found.groups) == [{"language": "en"}, {}, {}]
    assert [len(batch.ids) for batch in read_scores(path, ("S",), batch=2)] == [2, 1]


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"scores": {"S": 0.5}}, "has no id"),
        ({"id": "a"}, "has no scores"),
        ({"id": "a", "scores": {"S": 1.5}}, "number from 0 to 1"),
        ({"id": "a", "scores": {"S": True}}, "number from 0 to 1"),
        ({"id": "a", "scores": {"H": 0.5}}, "score of 'S'"),
        ({"id": "a", "scores": {"S": 0.5}, "groups": "[1]"}, "groups must be an object"),
    ],
)
def test_refuses_a_faulty_record(tmp_path, record, rule):
    path = write(tmp_path / "s.jsonl", [record])
    with pytest.raises(ConfigError, match=f"line 1.*{rule}"):
        list(read_scores(path, ("S",)))


def test_refuses_an_id_that_occurs_twice_and_a_file_without_records(tmp_path):
    path = write(tmp_path / "s.jsonl", RECORDS)
    with pytest.raises(ConfigError, match="id 'a' has two records"):
        all_scores([path, path], ("S",))
    with pytest.raises(ConfigError, match="has no scores"):
        score_categories(write(tmp_path / "e.jsonl", []))
