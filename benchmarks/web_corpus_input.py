"""The inputs of web_corpus.py: real texts for the rules, and a crawl grown from real pages by seeded word edits.

A grown crawl measures speed and nothing else: its pages are real in their HTML, not in their words. It never says
anything about the quality of a web corpus.
"""

import gzip
import io
import json
import random
import re
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.documents import Document
from data_prep.extract import ExtractConfig, decode, page_text
from data_prep.python_docs import SITE, page_names, render_pages
from data_prep.readers import ENDINGS, InputConfig, read_records
from data_prep.web_archives import Page
from gpt.errors import ConfigError

_MARKUP = re.compile(r"(<script\b.*?</script>|<style\b.*?</style>|<!--.*?-->|<[^>]*>)", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_ARTICLE = re.compile(r"^(?= = [^=].* = $)", re.MULTILINE)
_READ = InputConfig(paths=("-",))
_KEEP_ALL = (ExtractConfig(), ExtractConfig(main_content=False))
_EDITS = (0.3, 0.3, 0.3, 0.02)  # share of a copy's words that are changed: most copies are news, some near-copies


def real_texts(folder: Path) -> dict[str, str]:
    """Every text and page in `folder` (shared/data) and Python's documentation, by name. Pages give two texts: their
    main content, and everything."""
    if not (folder / "warc").is_dir():
        raise ConfigError(f"--data {folder}: there is no folder warc in it; name the folder with SOURCES.md")
    texts: dict[str, str] = {}
    for path in sorted((folder / "warc").glob("*.gz")):
        if path.name.endswith(tuple(ENDINGS)) and ".wat." not in path.name:
            texts |= _numbered(path.name, _record_texts(path))
    for path in sorted((folder / "text").glob("*.json*.gz")):
        lines = gzip.decompress(path.read_bytes()).splitlines()
        texts |= _numbered(path.name, (json.loads(line)["text"] for line in lines))
    texts |= _numbered("html", _html_texts(sorted((folder / "html").glob("*.html"))))
    texts |= _numbered("handbook", _html_texts(sorted((folder / "multiling").glob("*.html.gz"))))
    gold = json.loads((folder / "html" / "aeb-ground-truth.json").read_text())
    texts |= _numbered("gold", (page["articleBody"] for _, page in sorted(gold.items())))
    for name in ("inaugural", "state_union", "genesis"):
        texts |= _numbered(name, _zipped(folder / "text" / f"nltk-{name}.zip"))
    for name in ("valid", "test"):
        articles = _ARTICLE.split((folder / "text" / f"wikitext2-{name}.txt").read_text())
        texts |= _numbered(f"wikitext-{name}", (text for text in articles if text.strip()))
    plays = (folder / "text" / "tinyshakespeare.txt").read_text().split("\n\n")
    texts |= _numbered("shakespeare", ("\n\n".join(plays[i : i + 60]) for i in range(0, len(plays), 60)))
    texts |= _numbered("python-docs", _python_docs())
    return {name: text for text, name in {text: name for name, text in texts.items()}.items()}  # each text once


def _numbered(name: str, texts: Iterator[str]) -> dict[str, str]:
    return {f"{name} {number}": text for number, text in enumerate(texts) if text}


def _record_texts(path: Path) -> Iterator[str]:
    for record in read_records(path, _READ):
        if isinstance(record, Page):
            yield from _page_texts(record)
        elif isinstance(record, Document):
            yield record.text


def _page_texts(page: Page) -> Iterator[str]:
    for config in _KEEP_ALL if page.is_html else _KEEP_ALL[:1]:
        document = page_text(page, config)
        if document is not None:
            yield document.text


def _html_texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield from _page_texts(Page(path.name, content, None, True, {}))


def _zipped(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                yield archive.read(name).decode("utf-8", "replace")


def _python_docs() -> Iterator[str]:
    for name, html, _ in render_pages(page_names()):
        if html:
            yield from _page_texts(Page(SITE + name, html.encode("utf-8", "replace"), None, True, {}))


def grow_crawl(source: Path, folder: Path, *, n_pages: int, seed: int) -> tuple[list[Path], int]:
    """WARC files in `folder` with `n_pages` pages: those of `source` (shared/data/warc) as they are, then copies with
    edited words. Returns the files, of at most 200 pages, and the bytes of HTML in all. The same arguments give the
    same bytes."""
    pages = [page for path in sorted(source.glob("*.warc.gz")) for page in _html_pages(path)]
    if not pages:
        raise ConfigError(f"{source}: no WARC file with a page in it")
    files, n_bytes = [], 0
    for start in range(0, n_pages, 200):
        files.append(folder / f"crawl-{start // 200:05d}.warc.gz")
        with open(files[-1], "wb") as file:
            for number in range(start, min(start + 200, n_pages)):
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
    for record in read_records(path, _READ):
        if isinstance(record, Page) and record.is_html:
            yield record.metadata["url"], decode(record.content, record.charset)


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
