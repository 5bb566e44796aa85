"""Name records and make their texts safe."""

import pytest

from data_prep.documents.records import Origin, decode_utf8, from_fields, shown, usable_id

xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_the_id_of_a_bad_record_is_its_position_in_the_files_content(tmp_path):
    (tmp_path / "a").write_bytes(b"some bytes")
    origin = Origin(tmp_path / "a")
    expected = f"file:{xxhash.xxh3_128_hexdigest(b'some bytes')[:16]}@5"
    assert origin.drop("damaged", 3, 5, detail="gzip").id == origin.position_id(5) == expected
    dropped = origin.drop("damaged", 3, 5, id="urn:a", detail="gzip")
    assert (dropped.id, dropped.detail) == ("urn:a", "at byte 5: gzip")


def test_an_id_must_fit_on_a_line():
    assert [usable_id(value) for value in ("a", 7, True, None, "x" * 1025, "a\x00b", "")] == ["a", "7", *[""] * 5]


def test_fields_become_a_document_with_a_text():
    document = from_fields({"text": "t", "url": "http://u\x1b", "date": 3}, text_field="text", id_field="id")
    assert document.metadata == {"url": "http://u "}
    assert document.id.startswith("text:")
    for values in ({"text": 3}, [], {"id": "a"}):
        assert from_fields(values, text_field="text", id_field="id") is None
    assert len(shown("x" * 5000)) == 2048


def test_a_few_broken_characters_are_replaced_and_another_encoding_is_not_taken_for_utf8():
    assert decode_utf8("ä".encode() * 60 + b"\xff") == "ä" * 60 + "\ufffd"
    assert decode_utf8("Die Straße führt über den Fluß.".encode("latin-1")) is None
    assert decode_utf8("\ufffd".encode()) == "\ufffd"
