"""The inputs of web_corpus.py: real texts for the rules, and a crawl grown from real pages by seeded word edits.

A grown crawl measures speed and nothing else: its pages are real in their HTML, not in their words. It never says
anything about the quality of a web corpus.
"""

import gzip
import io
import json
import random
import re
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.documents.shards import read_shard
from data_prep.extraction.extract import ExtractConfig, ExtractTask, extract_file
from data_prep.inputs.config import ENDINGS, InputConfig
from data_prep.readers.python_docs import SITE, page_names, render_pages
from gpt.errors import ConfigError, import_extra

_MARKUP = re.compile(r"(<script\b.*?</script>|<style\b.*?</style>|<!--.*?-->|<[^>]*>)", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_ARTICLE = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)
_EDITS = (0.3, 0.3, 0.3, 0.02)  # share of a copy's words that are changed: most copies are news, some near-copies
_PAGES_PER_FILE = 1000


def real_texts(folder: Path) -> dict[str, str]:
    """Every text and page in `folder` (shared/data) and Python's documentation, by name. Pages give two texts: their
    main content, and everything."""
    if not (folder / "warc").is_dir():
        raise ConfigError(f"--data {folder}: there is no folder warc in it; name the folder with SOURCES.md")
    texts: dict[str, str] = {}
    for path in sorted((folder / "warc").glob("*.gz")):
        if path.name.endswith(tuple(ENDINGS)) and ".wat." not in path.name:
            texts |= _numbered(path.name, _archive_texts(path))
    for path in sorted((folder / "text").glob("*.json*.gz")):
        lines = gzip.decompress(path.read_bytes()).splitlines()
        texts |= _numbered(path.name, (json.loads(line)["text"] for line in lines))
    pages = sorted((*(folder / "html").glob("*.html"), *(folder / "multiling").glob("*.html.gz")))
    texts |= _numbered("html", _page_texts({path.name: _content(path) for path in pages}))
    documentation = {SITE + name: html.encode("utf-8", "replace") for name, html, _ in render_pages(page_names())}
    texts |= _numbered("python-docs", _page_texts(documentation))
    gold = json.loads((folder / "html" / "aeb-ground-truth.json").read_text())
    texts |= _numbered("gold", (page["articleBody"] for _, page in sorted(gold.items())))
    for name in ("inaugural", "state_union", "genesis"):
        texts |= _numbered(name, _zipped(folder / "text" / f"nltk-{name}.zip"))
    for name in ("valid", "test"):
        articles = _ARTICLE.split((folder / "text" / f"wikitext2-{name}.txt").read_text())
        texts |= _numbered(f"wikitext-{name}", (text for text in articles if text.strip()))
    plays = (folder / "text" / "tinyshakespeare.txt").read_text().split("\n\n")
    texts |= _numbered("shakespeare", ("\n\n".join(plays[i : i + 60]) for i in range(0, len(plays), 60)))
    return {name: text for text, name in {text: name for name, text in texts.items()}.items()}  # each text once


def _numbered(name: str, texts: Iterable[str]) -> dict[str, str]:
    return {f"{name} {number}": text for number, text in enumerate(texts) if text}


def _archive_texts(path: Path) -> Iterator[str]:
    """Of each page its main content and all of its text, of each other record its text."""
    with tempfile.TemporaryDirectory() as name:
        shard, trace = Path(name) / "shard", Path(name) / "trace"
        for config in (ExtractConfig(), ExtractConfig(main_content=False)):
            extract_file(ExtractTask(InputConfig(paths=(str(path),)), config), (path,), (shard, trace))
            yield from (document.text for document in read_shard(shard))


def _page_texts(pages: dict[str, bytes]) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "pages.warc.gz"
        path.write_bytes(b"".join(_response(url, content) for url, content in pages.items() if content))
        return list(_archive_texts(path))


def _content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _zipped(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                yield archive.read(name).decode("utf-8", "replace")


def grow_crawl(source: Path, folder: Path, *, n_pages: int, seed: int) -> tuple[list[Path], int]:
    """WARC files in `folder` with `n_pages` pages: those of `source` (shared/data/warc) as they are, then copies with
    edited words. Returns the files and the bytes of HTML in all. The same arguments give the same bytes."""
    pages = [page for path in sorted(source.glob("*.warc.gz")) for page in _html_pages(path)]
    if not pages:
        raise ConfigError(f"{source}: no WARC file with a page in it")
    files, n_bytes = [], 0
    for start in range(0, n_pages, _PAGES_PER_FILE):
        files.append(folder / f"crawl-{start // _PAGES_PER_FILE:05d}.warc.gz")
        with open(files[-1], "wb") as file:
            for number in range(start, min(start + _PAGES_PER_FILE, n_pages)):
                url, html = pages[number % len(pages)]
                copy = number // len(pages)
                if copy:
                    html = edit_words(html, _EDITS[copy % len(_EDITS)], random.Random(f"{seed} {number}"))
                content = html.encode()
                n_bytes += len(content)
                file.write(_response(f"{url}?copy={copy}", content))
    return files, n_bytes


def edit_words(html: str, rate: float, rng: random.Random) -> str:
    """The page with that share of the words of its text replaced by other words of the page; markup stays."""
    parts = _MARKUP.split(html)  # text, markup, text, ...
    words = [word for text in parts[::2] for word in _WORD.findall(text)]
    for i in range(0, len(parts), 2):
        parts[i] = _WORD.sub(lambda found: rng.choice(words) if rng.random() < rate else found[0], parts[i])
    return "".join(parts)


def _html_pages(path: Path) -> Iterator[tuple[str, str]]:
    """(address, HTML) of the pages that a server sent; what comes after damage in the file is left out."""
    warc = import_extra("fastwarc.warc", extra="data")
    encoding = import_extra("resiliparse.parse.encoding", extra="data")
    try:
        for record in warc.ArchiveIterator(str(path), record_types=warc.WarcRecordType.response, auto_decode="all"):
            if record.http_content_type == "text/html" and record.http_headers.status_code == 200:
                body = record.reader.read()
                url = record.headers.get("WARC-Target-URI").strip("<>")
                yield url, encoding.bytes_to_str(body, encoding.detect_encoding(body))
    except OSError:
        return


def _response(url: str, content: bytes) -> bytes:
    """A record as Common Crawl writes them: datatrove goes by WARC-Identified-Payload-Type, we by the HTTP header."""
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(content)}\r\n\r\n"
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\nWARC-Identified-Payload-Type: text/html\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http) + len(content)}\r\n\r\n"
    )
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as member:
        member.write(head.encode() + http.encode() + content + b"\r\n\r\n")
    return packed.getvalue()
