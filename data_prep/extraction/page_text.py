"""Turn the bytes of one page into text: find the encoding, extract the main content, tidy up.

This runs in a child process that may be killed (page_child.py): open no files, keep no state, import little.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.documents.shards import whole_text
from gpt.errors import ConfigError, import_extra

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"\s*<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9_:.-]{1,40})")
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\ufeff]"
)  # control characters except tab and newline, soft hyphens, byte-order marks
_ASCII = bytes(range(128))
_BLANK_LINES = re.compile(r"\n{3,}")


class OutOfMemory(Exception):
    """The extractor could not get the memory that a page needs."""


@dataclass(frozen=True)
class ExtractConfig:
    """The [extract] section of a recipe: how HTML becomes text."""

    method: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """`resiliparse` is fast. `trafilatura` (extra `quality`) finds the main text better at a fifth of the speed."""
    main_content: bool = True
    """Leave out navigation, headers, footers and the like (resiliparse)."""
    list_bullets: bool = True
    """Mark list items (resiliparse)."""
    alt_texts: bool = False
    """Include the descriptions of images (resiliparse)."""
    max_page_cpu_s: float = 10.0
    """Seconds of processor time of a page. Pages that need more are dropped."""
    max_page_memory_bytes: int = 448 << 20
    """Bytes of memory of a page. Pages that need more are dropped."""

    def __post_init__(self) -> None:
        if self.max_page_cpu_s <= 0:
            raise ConfigError(
                f"extract.max_page_cpu_s = {self.max_page_cpu_s} is invalid: must be above 0, for example 10"
            )
        if self.max_page_memory_bytes < 64 << 20:
            raise ConfigError(
                f"extract.max_page_memory_bytes = {self.max_page_memory_bytes} is invalid: must be at least 67108864"
            )
        if self.method != "resiliparse" and (not self.main_content or self.alt_texts):
            raise ConfigError(
                f'extract.method = "{self.method}" is invalid: it takes the main content only. Leave out '
                'extract.main_content and extract.alt_texts, or use extract.method = "resiliparse"'
            )


def load_libraries(config: ExtractConfig) -> None:
    """Import the libraries of `page_text`, so that a missing package is an error before the first page."""
    import_extra("resiliparse.extract.html2text", extra="data")
    import_extra("resiliparse.parse.encoding", extra="data")
    if config.method == "trafilatura":
        import_extra("trafilatura", extra="quality")


def page_text(content: bytes, charset: str | None, is_html: bool, config: ExtractConfig) -> str:
    """Return the text of a fetched page. Raises ValueError (its HTML cannot be parsed), OutOfMemory, MemoryError."""
    text = decode(content, charset)
    if is_html:
        text = _by_trafilatura(text) if config.method == "trafilatura" else _by_resiliparse(text, config)
    return tidy(text)


def _by_resiliparse(html: str, config: ExtractConfig) -> str:
    library: Any = import_extra("resiliparse.extract.html2text", extra="data")
    try:
        return str(
            library.extract_plain_text(
                html, main_content=config.main_content, list_bullets=config.list_bullets, alt_texts=config.alt_texts
            )
        )
    except (RuntimeError, ValueError) as error:
        # Status 2 of its parser (lexbor, core/base.h) is LXB_STATUS_ERROR_MEMORY_ALLOCATION.
        raise OutOfMemory(str(error)) if "Error 2)" in str(error) else ValueError(str(error)) from None


def _by_trafilatura(html: str) -> str:
    """Main text with tables, without comments, by trafilatura's fast setting; "" if it finds none."""
    library: Any = import_extra("trafilatura", extra="quality")
    try:
        return library.extract(html, fast=True, include_comments=False, include_tables=True) or ""
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def decode(data: bytes, charset: str | None) -> str:
    """Decode a page by its byte-order mark, else as UTF-8 if the bytes prove it, else as declared, else as detected.

    Well-formed multi-byte UTF-8 wins over a declaration: servers often declare one encoding for all their pages, and
    text in another encoding is almost never valid UTF-8 by chance. A declared encoding that does not fit is not used.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    if not data.isascii():
        text = data.decode("utf-8", "replace")
        n_high_bytes = len(data.translate(None, _ASCII))
        if text.count("\ufffd") * 50 <= n_high_bytes:  # a few broken characters do not make it another encoding
            return text
    encoding: Any = import_extra("resiliparse.parse.encoding", extra="data")
    for declared in (_telltale_encoding(data), charset, *_own_declarations(data)):
        codec = encoding.map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
        fitting = _decode_fitting(data, codec) if codec else None
        if fitting is not None:
            return fitting
    detected = encoding.detect_encoding(data, html5_compatible=False) or "utf-8"
    # Use the web's name if there is one (ISO-8859-1 is read as Windows-1252); cp949, for example, has none.
    codec = encoding.map_encoding_to_html5(detected, fallback_utf8=False) or detected
    return str(encoding.bytes_to_str(data, codec, errors="replace"))


def _telltale_encoding(data: bytes) -> str | None:
    """Recognise UTF-16 without a mark by the zero bytes of its markup, and ISO-2022-JP by its escape sequences."""
    if b"\x1b$B" in data or b"\x1b$@" in data:
        return "iso-2022-jp"
    head = data[:1024]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if even + odd < len(head) // 8:
        return None
    return "utf-16le" if odd > even else "utf-16be"


def _own_declarations(data: bytes) -> list[str]:
    head = data[:4096]
    found = [match[1].decode() for pattern in (_META_CHARSET, _XML_CHARSET) if (match := pattern.search(head))]
    # A page whose declaration is readable as ASCII is not UTF-16: the HTML standard then assumes UTF-8.
    return [name for name in found if not name.lower().startswith("utf-16")]


def _decode_fitting(data: bytes, codec: str) -> str | None:
    """Decode, or return None if more than one byte in a thousand does not fit the encoding."""
    try:
        text = data.decode(codec, "replace")
    except LookupError:
        return None
    return text if text.count("\ufffd") <= len(data) // 1000 else None


def tidy(text: str) -> str:
    """Remove control characters, soft hyphens, blanks at line ends, runs of empty lines and no-break spaces."""
    # str.translate would be ten times as slow: it looks up every character in a dict.
    text = whole_text(text).replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")
    text = _INVISIBLE.sub("", text.replace("\u2028", "\n").replace("\u2029", "\n"))
    text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    return _BLANK_LINES.sub("\n\n", text).strip()
