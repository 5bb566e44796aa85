"""Records of labelled texts: our form, other names and classes, and every fault in one line that quotes no text."""

import pytest

from gpt.errors import ConfigError
from gpt.moderation.label_records import LabelMap, MappedLabel, labelled_text, parse_label_map
from gpt.moderation.labels import text_id
from gpt.moderation.taxonomy import parse_taxonomy

SECRET = "a text that no error may quote"
ROWS = [{"id": name, "title": name, "definition": name} for name in ("H", "V", "SH")]
TAXONOMY = parse_taxonomy({"name": "small", "version": 3, "category": ROWS}, where="test")


def read(values, names=LabelMap()):  # noqa: B008
    return labelled_text(values, TAXONOMY, names, where="here")


def test_our_form():
    found = read(
        {
            "id": "t1",
            "text": SECRET,
            "labels": {"H": 1, "V": 0, "SH": None},
            "labeller": "ana",
            "taxonomy": "small 3",
            "groups": {"language": "en", "country": None},
            "severity": {"H": 2, "V": None},
            "source": "chat",
        }
    )
    assert (found.id, found.labels, found.labeller, found.source) == ("t1", {"H": True, "V": False}, "ana", "chat")
    assert (found.groups, found.severity) == ({"language": "en"}, {"H": 2})


def test_categories_at_the_top_level_as_in_openais_samples():
    found = read({"prompt": SECRET, "SH": 0, "H": 1, "row": 7})
    assert found.labels == {"H": True, "SH": False}
    assert found.id == text_id(SECRET)


@pytest.mark.parametrize("text", [None, "", " \n "])
def test_a_record_without_text_is_none(text):
    assert read({"text": text, "labels": {}}) is None


def test_fields_and_classes_are_mapped():
    names = parse_label_map(["toxic=H", "severe=H", "class:2=V"], TAXONOMY, text="body", id="key")
    assert names.labels == (MappedLabel("toxic", "H"), MappedLabel("severe", "H"), MappedLabel("class", "V", "2"))
    rows = [
        ({"toxic": "0", "severe": "0.6", "class": 2}, {"H": True, "V": True}),
        ({"toxic": "False", "severe": "", "class": "1"}, {"H": False, "V": False}),
        ({"toxic": "-1", "severe": None, "class": None}, {}),
    ]
    for values, labels in rows:
        found = read({"body": SECRET, "key": 12, "taxonomy": "another 1", **values}, names)
        assert (found.labels, found.id) == (labels, "12")


def test_ids_and_addresses_may_be_as_long_as_in_files_of_scores():
    address = "https://" + "x" * 2000
    found = read({"text": SECRET, "id": "y" * 1024, "source": address, "groups": {"page": address}, "labels": {}})
    assert (len(found.id), found.source, found.groups) == (1024, address, {"page": address})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": {"X": 1}}, ["'X' is no category of small 3", "H, V, SH"]),
        ({"labels": {"h": 1}}, ["'h' is no category"]),
        ({"labels": {"H": "yes"}}, ["label of 'H'", "neither 0 nor 1"]),
        ({"labels": {"H": 3}}, ["label of 'H'"]),
        ({"labels": [1]}, ["labels is invalid"]),
        ({"labels": {}, "taxonomy": "small 2"}, ["not 'small 3'", "migrate"]),
        ({"labels": {}, "labeller": 3}, ["labeller"]),
        ({"labels": {}, "id": ""}, ["id is invalid"]),
        ({"labels": {}, "id": "x" * 1025}, ["id is invalid", "1024"]),
        ({"labels": {}, "labeller": "x" * 201}, ["labeller is invalid", "200"]),
        ({"labels": {}, "groups": ["en"]}, ["groups"]),
        ({"labels": {}, "groups": {"n": 1}}, ["groups.n"]),
        ({"labels": {}, "severity": {"X": 1}}, ["severity", "'X'"]),
        ({"labels": {}, "severity": {"H": True}}, ["severity of H"]),
        ({"text": 5}, ["text is invalid"]),
        ({"text": SECRET + "\ud800"}, ["surrogate"]),
    ],
)
def test_faults(values, words):
    with pytest.raises(ConfigError) as error:
        read({"text": SECRET, **values})
    message = str(error.value)
    assert message.startswith("here: ")
    assert SECRET not in message
    assert all(word in message for word in words), message


def test_faults_of_a_map():
    for item in ("toxic", "=H", "toxic="):
        with pytest.raises(ConfigError, match=r"--map"):
            parse_label_map([item], TAXONOMY)
    with pytest.raises(ConfigError, match=r"--map a=X is invalid: 'X' is no category of small 3"):
        parse_label_map(["a=X"], TAXONOMY)
    with pytest.raises(ConfigError, match=r"--map names 'toxic', which is no field; they are text, tox"):
        read({"text": SECRET, "tox": 1}, parse_label_map(["toxic=H"], TAXONOMY))
    with pytest.raises(ConfigError, match=r"there is no field 'body'.*--text-field; the fields are text"):
        read({"text": SECRET}, LabelMap(text="body"))
    with pytest.raises(ConfigError, match=r"--map text:VALUE=CATEGORY") as error:
        read({"text": SECRET}, parse_label_map(["text=H"], TAXONOMY))
    assert SECRET not in str(error.value)
