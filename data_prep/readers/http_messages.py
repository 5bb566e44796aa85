"""Parse HTTP responses as archives store them: status, headers, and the body, unpacked up to a limit."""

import re
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from gpt.errors import import_extra

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?![0-9])")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]{0,256})?\r?\n")
_HEAD_LIMIT = 1 << 16
_MAX_CODINGS = 3  # a body that claims to be packed more often is no page


@dataclass(frozen=True)
class Response:
    """A response without its transfer and content codings. `content_type`: in lower case, "" if there is none."""

    status: int
    content_type: str
    charset: str | None
    body: bytes


def parse_headers(lines: bytes, *, once: Container[str] = ()) -> dict[str, str]:
    """Parse header lines to a mapping of lower-case names. The first of a name counts; folded lines are joined.

    ValueError: a name in `once` occurs again with another value.
    """
    text = lines.decode("utf-8", "replace")
    if "\n " in text or "\n\t" in text:
        text = re.sub(r"\r?\n[ \t]+", " ", text)
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            if found.setdefault(name, value) != value and name in once:
                raise ValueError(f"two different values of {name}")
    return found


def split_content_type(value: str) -> tuple[str, str | None]:
    """Split a Content-Type into (media type in lower case, character set or None)."""
    charset = _CHARSET.search(value)
    return value.partition(";")[0].strip().lower(), charset[1] if charset else None


def read_response(block: bytes, *, max_bytes: int) -> Response:
    """Parse a response from its bytes; without its body unless its status is 200.

    Crawlers leave bodies that are cut off, which give what is there, and bodies that are not packed although a header
    says so, which are taken as they are. ValueError: no HTTP response, or a damaged or unknown coding. OverflowError:
    it unpacks to more than `max_bytes`.
    """
    status = _STATUS.match(block)
    end = _HEAD_END.search(block, 0, _HEAD_LIMIT)
    if status is None:
        raise ValueError("no HTTP status line")
    code = int(status[1])
    if code != 200:
        return Response(code, "", None, b"")
    if end is None:
        raise ValueError(f"the HTTP headers do not end within {_HEAD_LIMIT} bytes")
    headers = parse_headers(block[status.end() : end.start()])
    content_type, charset = split_content_type(headers.get("content-type", ""))
    body = _decode_body(block[end.end() :], headers, max_bytes)
    if len(body) > max_bytes:
        raise OverflowError(f"unpacks to more than {max_bytes} bytes")
    return Response(code, content_type, charset, body)


def _decode_body(body: bytes, headers: Mapping[str, str], max_bytes: int) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _join_chunks(body)
    codings = [name.strip() for name in headers.get("content-encoding", "").lower().split(",")]
    codings = [name for name in codings if name not in ("", "identity", "none", "utf-8")]
    if len(codings) > _MAX_CODINGS:
        raise ValueError(f"Content-Encoding names {len(codings)} codings")
    for name in reversed(codings):
        body = _unpack(body, name, max_bytes + 1)
        if len(body) > max_bytes:
            break
    return body


def _join_chunks(body: bytes) -> bytes:
    """Join the data of a chunked body; return the body itself if it is not chunked after all."""
    chunks: list[bytes] = []
    at = 0
    while size := _CHUNK.match(body, at):
        n = int(size[1], 16)
        if n == 0:
            return b"".join(chunks)
        chunks.append(body[size.end() : size.end() + n])
        at = size.end() + n
        at += 2 if body.startswith(b"\r\n", at) else int(body.startswith(b"\n", at))
    return b"".join(chunks) if chunks else body


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    """Unpack at most `limit` bytes of a body in one coding."""
    if coding in ("gzip", "x-gzip"):
        return _inflate(body, 31, limit) if body.startswith(b"\x1f\x8b") else body
    if coding == "deflate":
        zlib_wrapped = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return _inflate(body, 15 if zlib_wrapped else -15, limit)
    if (
        body.lstrip()[:1] == b"<"
    ):  # not packed: neither format has a magic number, but neither can start with these bytes
        return body
    if coding == "br":
        return _unbrotli(body, limit)
    if coding == "zstd":
        return _unzstd(body, limit)
    raise ValueError(f"unknown Content-Encoding '{coding[:40]}'")


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    try:
        return zlib.decompressobj(wbits).decompress(body, limit)
    except zlib.error as error:
        if wbits == -15 and body.lstrip()[:1] == b"<":
            return body
        raise ValueError(f"damaged Content-Encoding ({error})") from None


def _unbrotli(body: bytes, limit: int) -> bytes:
    brotli: Any = import_extra("brotli", extra="data")
    decoder, size = brotli.Decompressor(), 0
    pieces: list[bytes] = []
    try:
        piece = decoder.process(body, output_buffer_limit=limit)
        while piece and size < limit:
            pieces.append(piece)
            size += len(piece)
            piece = b"" if decoder.is_finished() else decoder.process(b"", output_buffer_limit=limit - size + 1)
    except brotli.error as error:
        raise ValueError(f"damaged Content-Encoding ({error})") from None
    return b"".join(pieces)[:limit]


def _unzstd(body: bytes, limit: int) -> bytes:
    zstandard: Any = import_extra("zstandard", extra="data")
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 23).stream_reader(body) as reader:
            return bytes(reader.read(limit))
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged Content-Encoding ({error})") from None
