"""Tell text from other files by their first bytes, and find the encoding of text that is not UTF-8."""

import codecs
from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.documents.records import decode_utf8, usable_encoding, wide_encoding
from gpt.errors import import_extra
from gpt.files.json_text import decode_json

START = 1 << 16  # bytes of a file that are looked at
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))
_MAX_CONTROL_SHARE = 0.003
_MIN_WIDE = 16  # bytes that show a pattern of NUL
# Detectors give the smaller set's name: cp1252 has all characters of Latin-1, gb18030 all of GB2312 and GBK.
_LARGER = {"iso8859-1": "cp1252", "iso8859-15": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}


def looks_like_text(start: bytes) -> bool:
    """Return whether these first bytes of a file are text in some encoding. An empty file is no text."""
    if not start or wide_encoding(start, "") or wide_without_mark(start):
        return bool(start)
    return len(start) - len(start.translate(None, _CONTROL)) <= _MAX_CONTROL_SHARE * len(start)


def wide_without_mark(start: bytes) -> str:
    """Return UTF-16 as the encoding of bytes of which every other one is mostly NUL, else ""."""
    even, odd = start[0::2].count(0), start[1::2].count(0)
    half = len(start) // 2 if len(start) >= _MIN_WIDE else 0
    if half and odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if half and even > 0.4 * half and odd < 0.05 * half else ""


def is_utf8(start: bytes) -> bool:
    """Return whether the first bytes of a text are read without `input.encoding`."""
    whole = start[:-4] if len(start) >= START else start  # the last letter may be cut
    return bool(wide_encoding(start, "")) or (b"\0" not in start and decode_utf8(whole) is not None)


def find_encoding(samples: Sequence[bytes]) -> str:
    """Return the encoding of most of these texts, none of which is UTF-8. cp1252 if none can be detected."""
    encoding: Any = import_extra("resiliparse.parse.encoding", extra="data")
    votes: Counter[str] = Counter()
    for sample in samples:
        name = wide_without_mark(sample) or encoding.detect_encoding(sample, html5_compatible=False) or "cp1252"
        votes[_usable(name)] += 1
    return votes.most_common(1)[0][0]


def _usable(name: str) -> str:
    try:
        name = codecs.lookup(name).name
    except LookupError:
        return "cp1252"
    name = _LARGER.get(name, name)
    return name if usable_encoding(name) else "cp1252"


def text_in_lines(start: bytes, field: str) -> tuple[int, int, int] | None:
    """Bytes of text, bytes and number of the whole JSON lines at the start of a file. None: it has no whole line.

    All three come from the same lines, because the mean text of other lines would not fit these bytes.
    """
    lines = start.splitlines(keepends=True)
    lines = lines if start.endswith(b"\n") else lines[:-1]
    n_text = 0
    for line in lines:
        try:
            record = decode_json(line)
        except ValueError:
            continue
        text = record.get(field) if isinstance(record, dict) else None
        n_text += len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
    return (n_text, sum(map(len, lines)), len(lines)) if n_text else None
