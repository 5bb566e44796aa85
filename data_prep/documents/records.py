"""What reading a file gives: pages, texts, and bad records with their place in it; never opens more than that file."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.documents.shards import Document, content_id, whole_text
from gpt.errors import import_extra

_LONGEST_ID = 1024  # characters
_ASCII = bytes(range(128))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Page:
    """A web page as it was fetched: bytes, with the character set that the server named or None."""

    id: str
    content: bytes
    charset: str | None
    is_html: bool
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A record that gives no document, and why. `id`: its own, else its place in its file (`Origin.place`)."""

    reason: str
    n_bytes: int
    id: str = ""
    detail: str = ""


class Origin:
    """Names places in one input file by its content, so that they hold when the file is moved or renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _digest(self) -> str:
        """As the manifest has it for a local file; read once, and only when there is a bad record."""
        digest = import_extra("xxhash", extra="data").xxh3_128()
        with open(self._path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return str(digest.hexdigest())[:16]

    def place(self, offset: int | str) -> str:
        """`file:DIGEST@OFFSET`, the id of a record that has none."""
        return f"file:{self._digest}@{offset}"

    def drop(self, reason: str, n_bytes: int, offset: int | str, *, id: str = "", detail: str = "") -> Dropped:
        """A record dropped at `offset`, an offset in bytes: of the file, or of what it unpacks to, as readers say."""
        where = f"at byte {offset}" if id else ""
        return Dropped(reason, n_bytes, id or self.place(offset), ": ".join(part for part in (where, detail) if part))


def usable_id(value: object) -> str:
    """A source's own id as text, or "" when it is none that a line can hold: empty, over 1,024 characters, or with
    control characters in it. Ids are only compared, hashed and shown; none ever becomes a path."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = whole_text(str(value))
    return "" if len(text) > _LONGEST_ID or (not text.isprintable() and _CONTROL.search(text)) else text


def from_fields(values: object, *, text_field: str, id_field: str) -> Document | None:
    """A document from the fields of a JSON object or a table's row; None when it has no text."""
    if not isinstance(values, dict) or not isinstance(values.get(text_field), str):
        return None
    text = whole_text(values[text_field])
    metadata = {key: shown(values[key]) for key in ("url", "date") if isinstance(values.get(key), str)}
    return Document(usable_id(values.get(id_field)) or content_id("text", text.encode()), text, metadata)


def shown(text: str, limit: int = 2048) -> str:
    """Text from a header, for the metadata: without control characters, cut at `limit` characters."""
    text = whole_text(text)[:limit]
    return text if text.isprintable() else _CONTROL.sub(" ", text)


def decode_utf8(data: bytes) -> str | None:
    """Text that should be UTF-8: with U+FFFD for a few broken characters, None when it is something else.

    A few: at most one in fifty of the bytes beyond ASCII, so that text in another encoding is never taken for UTF-8.
    """
    text = data.decode("utf-8", "replace")
    n_broken = 0 if "\ufffd" not in text else text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
    if n_broken and n_broken * 50 > len(data.translate(None, _ASCII)):
        return None
    return text
