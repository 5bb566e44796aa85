"""The texts to label come from selections, scores, labels and other tools."""

import gzip
import json

import pytest

from gpt.errors import ConfigError
from gpt.moderation.labels import text_id
from launch.labelling.texts import read_texts


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_text_keeps_what_its_labels_repeat(tmp_path):
    line = {"text": "one", "scores": {"A": 0.7}, "pipeline": "above:A", "weight": 2.5, "groups": {"language": "en"}}
    found = read_texts([write(tmp_path / "selection.jsonl", line, {"id": "x", "text": "two", "groups": None})])
    assert [text.id for text in found.texts] == [text_id("one"), "x"]
    assert found.texts[0].fields == {"pipeline": "above:A", "weight": 2.5, "groups": {"language": "en"}}
    assert found.texts[1].fields == {}


def test_a_number_is_an_id_as_in_files_of_scores(tmp_path):
    path = write(
        tmp_path / "texts.jsonl", *({"id": given, "text": f"of {given}"} for given in (7, "8", "", True, None))
    )
    ids = [text.id for text in read_texts([path]).texts]
    assert ids == ["7", "8", *(text_id(f"of {given}") for given in ("", True, None))]


def test_each_text_is_asked_once_and_the_rest_is_counted(tmp_path):
    path = write(
        tmp_path / "texts.jsonl",
        {"id": "x", "text": "one"},
        {"id": "x", "text": "one"},
        {"id": "x", "text": "another"},
        {"id": "y"},
        {"text": "  "},
        {"text": "half \ud800"},
        {"id": "z", "text": "labelled", "labels": {"A": 1}, "labeller": "ana"},
        {"id": "z", "text": "labelled", "labels": {"A": 0}, "labeller": "ben"},
    )
    found = read_texts([path])
    assert [text.id for text in found.texts] == ["x", "z"]
    assert found.left_out == {
        'no "text"': 2,
        "repeated": 1,
        "another text has its id": 1,
        "not Unicode: a half of a surrogate pair": 1,
    }
    assert [record["labeller"] for record in found.labelled] == ["ana", "ben"]


def test_a_file_without_texts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no text to label"):
        read_texts([write(tmp_path / "empty.jsonl", {"prompt": "x"})])
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        read_texts([tmp_path / "broken.jsonl"])


def test_packed_lines_and_csv_are_read_too(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": "a", "text": "one", "groups": {"language": "en"}}) + "\n")
    (tmp_path / "b.csv").write_text("id,text\nb,two\n")
    found = read_texts([tmp_path / "a.jsonl.gz", tmp_path / "b.csv"])
    assert [(text.id, text.text, text.fields) for text in found.texts] == [
        ("a", "one", {"groups": {"language": "en"}}),
        ("b", "two", {}),
    ]
    (tmp_path / "c.jsonl").write_text('{"text": "a", "groups": 3}\n')
    with pytest.raises(ConfigError, match="groups must be an object"):
        read_texts([tmp_path / "c.jsonl"])
