"""The extraction stage: records of an input file to plain text; never judges the text beyond finding it empty."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_prep.counts import Tally
from data_prep.documents import Document, whole_text, write_shard
from data_prep.engine import Result, Stage
from data_prep.readers import InputConfig, read_records
from data_prep.traces import write_trace
from data_prep.web_archives import Dropped, Page
from gpt.errors import import_extra

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.IGNORECASE)
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_CONTROLS = dict.fromkeys((*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)))  # all but tab and newline
_TIDY = {**_CONTROLS, 0x09: 0x09, 0xA0: 0x20, 0x2028: 0x0A, 0x2029: 0x0A, 0xFEFF: None, 0xAD: None}
_ASCII = bytes(range(128))
_LINE_ENDS = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class ExtractConfig:
    """Section [extract]: how HTML becomes text.

    `main_content` leaves navigation, headers, footers and the like out. `list_bullets` marks list items, `alt_texts`
    puts in what images say they show.
    """

    main_content: bool = True
    list_bullets: bool = True
    alt_texts: bool = False


@dataclass(frozen=True)
class ExtractTask:
    """What one extraction task does: how to read the file and how to extract."""

    input: InputConfig
    extract: ExtractConfig


def extract_file(config: ExtractTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: one input file to (shard, trace); rows of counts `read` and `extract`."""
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        reading, extracting = Tally("read", trace), Tally("extract", trace)
        for record in read_records(inputs[0], config.input):
            if isinstance(record, Dropped):
                reading.drop(record.reason, record.n_bytes, record.id, detail=record.detail)
                continue
            n_bytes = len(record.content) if isinstance(record, Page) else record.n_bytes
            reading.keep(n_bytes, n_bytes)
            document = record if isinstance(record, Document) else page_text(record, config.extract)
            if document is None:
                extracting.drop("failed", n_bytes, record.id)
            elif not document.text.strip():
                extracting.drop("empty", n_bytes, record.id)
            else:
                extracting.keep(n_bytes, document.n_bytes)
                write(document)
    return Result([reading.counts(), extracting.counts()])


def page_text(page: Page, config: ExtractConfig) -> Document | None:
    """The text of a fetched page, or None when its HTML cannot be parsed."""
    text = decode(page.content, page.charset)
    if page.is_html:
        html = import_extra("resiliparse.extract.html2text", extra="data")
        try:
            text = html.extract_plain_text(
                text, main_content=config.main_content, list_bullets=config.list_bullets, alt_texts=config.alt_texts
            )
        except (RuntimeError, ValueError):
            return None
    return Document(page.id, tidy(text), page.metadata)


def decode(data: bytes, charset: str | None) -> str:
    """Bytes of a page to text: byte-order mark, else UTF-8 if the bytes prove it, else what is declared, else detected.

    Servers often declare an encoding for all their pages, and text in another one is almost never valid UTF-8 by
    chance, so well-formed multi-byte UTF-8 wins over a declaration. A declared encoding that does not fit is not used.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    if not data.isascii():
        text = data.decode("utf-8", "replace")
        n_high_bytes = len(data.translate(None, _ASCII))
        if text.count("\ufffd") * 50 <= n_high_bytes:  # a few broken characters in a UTF-8 page are no other encoding
            return text
    found = _META_CHARSET.search(data[:4096])
    encoding = import_extra("resiliparse.parse.encoding", extra="data")
    for declared in (charset, found[1].decode() if found else None):
        codec = encoding.map_encoding_to_html5(declared, fallback_utf8=False) if declared else None
        fitting = _decode_fitting(data, codec) if codec else None
        if fitting is not None:
            return fitting
    detected = encoding.detect_encoding(data, html5_compatible=False) or "utf-8"
    # The web's name for it where there is one (ISO-8859-1 is read as Windows-1252); cp949, for one, has none.
    codec = encoding.map_encoding_to_html5(detected, fallback_utf8=False) or detected
    return str(encoding.bytes_to_str(data, codec, errors="replace"))


def _decode_fitting(data: bytes, codec: str) -> str | None:
    """The text, unless more than one byte in a thousand does not fit the encoding."""
    try:
        text = data.decode(codec, "replace")
    except LookupError:
        return None
    return text if text.count("\ufffd") <= len(data) // 1000 else None


def tidy(text: str) -> str:
    """Text without control characters, soft hyphens, blanks at line ends, runs of empty lines and no-break spaces."""
    text = whole_text(text).replace("\r\n", "\n").replace("\r", "\n").translate(_TIDY)
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", text)).strip()


EXTRACT = Stage(
    name="extract",
    function=extract_file,
    modules=("extract", "readers", "web_archives", "compressed", "documents", "traces"),
    packages=("fastwarc", "resiliparse", "zstandard", "pyarrow"),
)
