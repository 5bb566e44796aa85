"""Find input files and read their records: JSON lines, text, and the choice of a reader by the ending."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest

from data_prep.decontamination.evaluation_sets import EvaluationSet, find_set_files
from data_prep.documents.records import Dropped
from data_prep.documents.shards import Document
from data_prep.inputs.config import InputConfig, form_of
from data_prep.inputs.find import find_inputs
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError

pytest.importorskip("isal", reason="the extra 'data' is not installed")
zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path, **config):
    return list(read_records(path, InputConfig(paths=("x",), **config)))


def kinds(records) -> dict[str, int]:
    return dict(Counter(r.reason if isinstance(r, Dropped) else type(r).__name__ for r in records))


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(PACK.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("ending", PACK)
def test_truncated_json_lines_keep_the_whole_ones(tmp_path, ending):
    line = json.dumps({"text": "some words " * 40}).encode() + b"\n"
    path = packed(tmp_path / f"a.jsonl{ending}", line * 2000)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    found = kinds(read(path))
    assert found.pop("truncated", 0) + found.pop("damaged", 0) == 1  # xz keeps its lengths at the end
    assert found.get("Document", 0) <= 2000
    path.write_bytes(data + data)
    assert kinds(read(path)) == {"Document": 4000}
    path.write_bytes(data + b"something else")
    assert kinds(read(path)) == {"Document": 2000, "damaged": 1}


@pytest.mark.parametrize("ending", ["", *PACK])
def test_json_lines_become_documents_or_reasons(tmp_path, ending):
    lines = [
        json.dumps({"id": "a", "text": "one\nä", "url": "http://u", "other": 1}),
        json.dumps({"id": 7, "text": "two"}),
        json.dumps({"text": "no id"}),
        '{"text": "\\ud800 lone"}',
        '{"text": 3}',
        "[1]",
        "not json",
        "",
        json.dumps({"text": "x" * 500}),
        json.dumps({"id": "z", "text": "last"}),
    ]
    records = read(packed(tmp_path / f"a.jsonl{ending}", "\n".join(lines).encode()), max_record_bytes=400)
    assert kinds(records) == {"Document": 5, "malformed": 3, "too_large": 1}
    documents = [r for r in records if isinstance(r, Document)]
    assert [d.text for d in documents] == ["one\nä", "two", "no id", "\ufffd lone", "last"]
    assert [d.id for d in documents[:2]] == ["a", "7"]
    assert documents[0].metadata == {"url": "http://u"}


def test_a_json_line_is_mended_as_a_text_is(tmp_path):
    """One broken byte in 60 letters beyond ASCII becomes U+FFFD; text in another encoding is dropped."""
    line = json.dumps({"text": "ä" * 60 + "y"}, ensure_ascii=False).encode()
    latin = json.dumps({"text": "Grüße"}, ensure_ascii=False).encode("latin-1")
    path = packed(tmp_path / "a.jsonl", b"\n".join([line.replace(b"y", b"\xff"), latin, b"\xef\xbb\xbf{"]))
    first, *dropped = read(path)
    assert first.text == "ä" * 60 + "\ufffd"
    assert kinds(dropped) == {"not_utf8": 1, "malformed": 1}
    path.write_bytes(b"\xef\xbb\xbf" + line)
    assert kinds(read(path)) == {"Document": 1}, "a byte-order mark is no damage"


def test_json_lines_may_have_the_names_of_dolma(tmp_path):
    path = packed(tmp_path / "a.json.gz", b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    assert [r.id for r in read(path)] == ["a", "b"]
    with pytest.raises(ConfigError, match="the ending is unknown"):
        find_inputs([str(packed(tmp_path / "a.json", b"{}"))])


def test_the_fields_may_have_other_names(tmp_path):
    path = packed(tmp_path / "a.jsonl", b'{"key": "k", "body": "words"}')
    (document,) = read(path, text_field="body", id_field="key")
    assert (document.id, document.text) == ("k", "words")


@pytest.mark.parametrize("ending", ["", *PACK])
def test_text_files_are_one_document_or_are_cut_at_separators(tmp_path, ending):
    path = packed(tmp_path / f"a.txt{ending}", b"\xef\xbb\xbfone\n\ntwo\n\n\n\nthree" + "ä".encode())
    assert [d.text for d in read(path)] == ["one\n\ntwo\n\n\n\nthreeä"]
    assert [d.text for d in read(path, text_separator="\n\n")] == ["one", "two", "threeä"]
    assert kinds(read(path, max_record_bytes=10)) == {"too_large": 1}


def test_text_documents_across_blocks_and_above_the_limit(tmp_path):
    parts = ["a" * 70_000, "b", "c" * 300_000, "d", "e" * 65_535, "f"]
    path = packed(tmp_path / "a.txt", "<|>".join(parts).encode())
    records = read(path, text_separator="<|>", max_record_bytes=100_000)
    assert [r.text for r in records if isinstance(r, Document)] == [parts[i] for i in (0, 1, 3, 4, 5)]
    assert kinds(records) == {"Document": 5, "too_large": 1}


def test_a_link_is_read_by_its_own_name(tmp_path):
    """As in a Hugging Face cache: snapshot/a.jsonl -> ../blobs/0a1b."""
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs/0a1b").write_bytes(b'{"text": "one"}\n')
    (tmp_path / "snapshot/a.jsonl").symlink_to("../blobs/0a1b")
    (path,) = find_inputs([f"{tmp_path}/snapshot/../snapshot/*"])
    assert path == tmp_path / "snapshot/a.jsonl"
    assert form_of(path) == "-json-lines"
    assert kinds(read(path)) == {"Document": 1}
    ((found,),) = find_set_files([EvaluationSet("a", (str(path),))], where="sets")
    assert found == path


def test_patterns_find_each_file_once(tmp_path):
    for name in ("b.txt", "a.jsonl.gz", "c.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.warc.gz").write_bytes(b"")
    found = find_inputs([f"{tmp_path}/*.txt", f"{tmp_path}/**/*.gz", f"{tmp_path}/b.txt"])
    assert [path.name for path in found] == ["a.jsonl.gz", "b.txt", "d.warc.gz"]
    for pattern, message in [
        (f"{tmp_path}/*.nothing", "no file matches"),
        (f"{tmp_path}/c.csv", "the ending is unknown"),
        (f"{tmp_path}/*p", "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_inputs([pattern])
    with pytest.raises(ConfigError, match=r"input\.paths is empty"):
        InputConfig()
    with pytest.raises(ConfigError, match="both given"):
        InputConfig(paths=("a",), source="python-docs")


def test_a_long_text_is_cut_at_paragraphs(tmp_path):
    """All bytes stay, in parts of one to two times the size; each ends behind the best border there is."""
    paragraphs = "".join(f"Line {i} of a text.\nIt goes on äöü.\n\n" for i in range(3000))
    parts = [r.text for r in read(packed(tmp_path / "a.txt", paragraphs.encode()), text_split_bytes=400)]
    assert "".join(parts) == paragraphs
    assert all(part.endswith("\n\n") for part in parts)
    assert all(400 <= len(part.encode()) <= 800 for part in parts[:-1])
    windows = "line\r\n\r\n" * 300
    for text, end in (
        ("a sentence. " * 500, ". "),
        ("word " * 500, " "),
        ("ä" * 3000, "ä"),
        (windows, "\n\r\n"),
    ):
        parts = [r.text for r in read(packed(tmp_path / "b.txt", text.encode()), text_split_bytes=100)]
        assert "".join(parts) == text
        assert all(part.endswith(end) and 100 <= len(part.encode()) <= 200 for part in parts[:-1])


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "shift_jis", "euc_kr"])
def test_a_long_line_of_another_encoding_is_cut_between_letters(tmp_path, encoding):
    """A part that began or ended inside a letter would be dropped for its encoding."""
    text = ("a" + "文日本" * 211 if encoding != "euc_kr" else "a" + "한국어" * 211) * 9
    parts = read(packed(tmp_path / "a.txt", text.encode(encoding)), text_split_bytes=101, encoding=encoding)
    assert kinds(parts) == {"Document": len(parts)}
    assert "".join(part.text for part in parts) == text


def test_a_long_text_is_cut_before_and_after_damage(tmp_path):
    path = packed(tmp_path / "a.txt.gz", b"")
    one, two = (gzip.compress((f"{word} " * 200).encode()) for word in ("before", "after"))
    path.write_bytes(one + b"\x1f\x8b\x08 damage" + two)
    records = read(path, text_split_bytes=100)
    assert kinds(records)["damaged"] == 1
    texts = [r.text for r in records if isinstance(r, Document)]
    assert "".join(texts[:12]).startswith("before before")
    assert texts[-1].endswith("after ")


def test_a_text_may_be_in_another_encoding(tmp_path):
    """UTF-8 stays UTF-8, so that one key serves a folder of both."""
    text = "crème brûlée, déjà vu\n"
    latin, utf8 = packed(tmp_path / "a.txt", text.encode("cp1252")), packed(tmp_path / "b.txt", text.encode())
    assert kinds(read(latin)) == {"not_utf8": 1}
    for path in (latin, utf8):
        assert [r.text for r in read(path, encoding="cp1252")] == [text]
    line = packed(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n{"text": "caf\xc3\xa9"}\n')
    assert [r.text for r in read(line, encoding="latin-1")] == ["café", "café"]
    assert kinds(read(packed(tmp_path / "c.txt", b"\x81\x8d undefined"), encoding="cp1252")) == {"not_utf8": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_read_with_a_mark_or_the_key(tmp_path, encoding):
    lines = "\n".join(json.dumps({"text": f"Ωmega {i}"}, ensure_ascii=False) for i in range(20_000))
    path = packed(tmp_path / "a.jsonl.gz", lines.encode(encoding))
    given = {"encoding": encoding} if encoding.endswith("e") else {}
    assert [r.text for r in read(path, **given)] == [f"Ωmega {i}" for i in range(20_000)]
    assert kinds(read(packed(tmp_path / "b.txt", b"plain"), **given)) == {"Document": 1}
    broken = packed(tmp_path / "c.txt", b"\xff\xfe" + b"\x00\xd8" * 300)
    assert kinds(read(broken)) == {"not_utf8": 1}


def test_pages_and_further_endings_are_read(tmp_path):
    (page,) = read(packed(tmp_path / "a.html.gz", b"<p>Words</p>"))
    assert page.content == b"<p>Words</p>"
    code = packed(tmp_path / "LICENSE", b"Copyright")
    assert [r.text for r in read(code, endings={"": "text"})] == ["Copyright"]
    lines = packed(tmp_path / "a.json", b'{"text": "one"}')
    assert [r.text for r in read(lines, endings={".json": "json lines"})] == ["one"]


def test_a_line_without_the_field_names_those_it_has(tmp_path):
    (dropped,) = read(packed(tmp_path / "a.jsonl", b'{"content": "x", "n": 1}'))
    assert "no text in 'text' (it has: content, n)" in dropped.detail
