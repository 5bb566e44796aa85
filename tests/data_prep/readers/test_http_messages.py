"""Parse HTTP responses and unpack their bodies."""

import gzip
import zlib

import pytest

from data_prep.readers.http_messages import parse_headers, read_response, split_content_type

zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
brotli = pytest.importorskip("brotli", reason="the extra 'data' is not installed")


def response(headers: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + headers + b"\r\n" + body


def test_bodies_are_unpacked_by_their_headers():
    text = b"<p>" + b"words of a page " * 400
    raw = zlib.compressobj(wbits=-15)
    packings = {
        b"gzip": gzip.compress(text),
        b"x-gzip": gzip.compress(text),
        b"deflate": zlib.compress(text),
        b"DEFLATE": raw.compress(text) + raw.flush(),
        b"br": brotli.compress(text),
        b"zstd": zstandard.compress(text),
        b"identity": text,
        b"gzip, br": brotli.compress(gzip.compress(text)),
    }
    for name, body in packings.items():
        block = response(b"Content-Encoding: " + name + b"\r\n", body)
        assert read_response(block, max_bytes=10_000).body == text, name
        with pytest.raises(OverflowError):
            read_response(block, max_bytes=6000)
        if name != b"identity":  # headers of a crawler that has unpacked the body
            assert read_response(response(b"Content-Encoding: " + name + b"\r\n", text), max_bytes=10_000).body == text
    chunks = b"10;x=y\r\n" + text[:16] + b"\r\n%X\r\n" % len(text[16:]) + text[16:] + b"\r\n0\r\n\r\n"
    for body in (chunks, chunks[:-7], text):
        assert read_response(response(b"Transfer-Encoding: chunked\r\n", body), max_bytes=10_000).body == text
    half = read_response(response(b"Content-Encoding: gzip\r\n", gzip.compress(text)[:-20]), max_bytes=10_000).body
    assert text.startswith(half)
    assert len(half) > 16
    for wrong in (b"no HTTP", response(b"Content-Encoding: pack200\r\n", b"x"), b"HTTP/1.1 200 OK\r\nA: b\r\n"):
        with pytest.raises(ValueError, match=r"status line|unknown Content-Encoding|do not end"):
            read_response(wrong, max_bytes=100)


def test_headers_are_joined_and_the_first_of_a_name_counts():
    lines = b"A: one\r\n more\r\na: two\r\nno header\r\nB:3\r\n"
    assert parse_headers(lines) == {"a": "one more", "b": "3"}
    with pytest.raises(ValueError, match="two different values of a"):
        parse_headers(lines, once=("a",))
    assert split_content_type('Text/HTML; charset="koi8-r"') == ("text/html", "koi8-r")
    assert split_content_type("text/plain") == ("text/plain", None)
