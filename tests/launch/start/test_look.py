"""Look at local files: kinds, encodings, fields, sizes."""

import gzip
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.start.look import Survey, look
from launch.start.texts import find_encoding, is_utf8, looks_like_text, wide_without_mark

pytest.importorskip("isal", reason="the extra 'data' is not installed")
ENGLISH = "It was the best of times, it was the worst of times. "


def survey(folder: Path, **files: bytes) -> Survey:
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return look([str(folder)], without=folder / "out")


def test_the_files_are_passed_on_for_a_bar(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(ENGLISH)
    seen: list[str] = []

    def following(paths: list[Path]) -> Iterator[Path]:
        for path in paths:
            yield path
            seen.append(path.name)

    assert look([str(tmp_path)], without=tmp_path / "out", following=following).files == 3
    assert sorted(seen) == ["a.txt", "b.txt", "c.txt"]


def test_text_is_told_from_other_bytes():
    assert looks_like_text(ENGLISH.encode())
    assert looks_like_text("Привет, мир".encode("koi8-r"))
    assert looks_like_text(ENGLISH.encode("utf-16"))
    assert looks_like_text(ENGLISH.encode("utf-16-be"))
    assert not looks_like_text(b"")
    assert not looks_like_text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert not looks_like_text(random.Random(1).randbytes(2000))
    assert not looks_like_text(gzip.compress(ENGLISH.encode() * 50))


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("Der Bär läuft über die Straße, während die Möwen höhnisch krächzen. " * 20, "latin-1", "cp1252"),
        ("Le garçon était très fatigué \u2014 d\u2019après sa mère. " * 20, "cp1252", "cp1252"),
        ("Съешь же ещё этих мягких французских булок да выпей чаю. " * 20, "cp1251", "cp1251"),
        ("今日は天気がとても良いので、公園へ散歩に行きました。" * 20, "shift_jis", "shift_jis"),
        ("我们今天去公园散步，天气非常好，孩子们都很高兴。" * 20, "gbk", "gb18030"),
        (ENGLISH * 20, "utf-16-le", "utf-16-le"),
    ],
)
def test_the_encoding_of_a_text_is_found(text, encoding, found):
    data = text.encode(encoding)
    assert not is_utf8(data)
    assert find_encoding([data]) == found


def test_utf8_and_marked_utf16_need_no_key():
    assert is_utf8("grün".encode())
    assert is_utf8(("ü" * 70_000).encode()[: 1 << 16][:-1]), "a letter that is cut at the end"
    assert is_utf8("grün".encode("utf-16"))
    assert wide_without_mark(b"") == ""


def test_sizes_are_those_of_the_text(tmp_path):
    """Within 10%, also of packed files and of lines with other fields."""
    rows = [json.dumps({"id": n, "text": ENGLISH * (n % 9 + 1), "other": "x" * 60}) for n in range(2000)]
    texts = sum(len(json.loads(row)["text"]) for row in rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    found = look([str(tmp_path / "rows.jsonl.gz")], without=tmp_path)
    assert found.text_bytes == pytest.approx(texts, rel=0.1)
    assert found.documents == pytest.approx(2000, rel=0.1)
    assert found.text_field == "text"
    (tmp_path / "a.txt").write_text(ENGLISH * 1000)
    found = look([str(tmp_path / "a.txt")], without=tmp_path)
    assert (found.text_bytes, found.documents) == (len(ENGLISH) * 1000, 1)


def test_unknown_endings_are_seen_by_their_content(tmp_path):
    found = survey(
        tmp_path,
        a__py=b"print('x')\n",
        b__dat=b"\0\1\2",
        LICENSE=b"Copyright\n",
        c__json=b'{"text": "x"}\n{"text": "y"}\n',
    )
    assert found.endings == {"": "text", ".json": "json lines", ".py": "text"}
    assert [path.name for path in found.not_text] == ["b.dat"]


def test_lines_without_text_among_texts_are_left_out(tmp_path):
    found = survey(tmp_path, a__txt=ENGLISH.encode() * 9, settings__json=b'{"width": 3}\n', b__jsonl=b'{"n": 1}\n')
    assert (found.kinds, found.endings) == ({"text": 1}, {})
    assert [path.name for path in found.not_text] == ["b.jsonl", "settings.json"]
    (tmp_path / "broken").mkdir()
    with pytest.raises(ConfigError, match=r"broken: none of the 1 files is text \(a\.jsonl\)"):
        survey(tmp_path / "broken", a__jsonl=b"no json\n")


def test_a_separator_in_the_text_is_found(tmp_path):
    found = survey(tmp_path, stories__txt=f"{ENGLISH}\n<|endoftext|>\n".encode() * 50)
    assert found.separator == "<|endoftext|>"


def test_a_file_that_changes_meanwhile_ends_with_one_line(tmp_path):
    """Another thread appends to the file until the survey has seen it."""
    path, stop = tmp_path / "a.txt", threading.Event()
    path.write_text(ENGLISH * 100)

    def append() -> None:
        while not stop.is_set():
            with open(path, "a") as file:
                file.write(ENGLISH)
            os.sched_yield()

    thread = threading.Thread(target=append)
    thread.start()

    def look_often() -> None:
        for _ in range(200):
            look([str(tmp_path)], without=tmp_path / "out")

    try:
        with pytest.raises(ConfigError, match=r"a\.txt changes while it is read"):
            look_often()
    finally:
        stop.set()
        thread.join()


def test_lines_of_any_length_give_the_bytes_of_their_text(tmp_path):
    """The first lines are short and the later ones long, as in a file sorted by length."""
    texts = [ENGLISH] * 10 + [ENGLISH * 140] * 200
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    found = look([str(tmp_path / "a.jsonl")], without=tmp_path / "out")
    assert found.text_bytes == pytest.approx(sum(map(len, texts)), rel=0.05)
