"""Make a crawl without a network: the pages that pydoc renders for Python's standard library, as WARC files.

Child processes (python_docs_render.py) render the pages, so nothing is imported here. The files are written like those
of a crawler: one gzip member a record, first a warcinfo record, then one HTTP response a page (WARC 1.1, ISO
28500:2017). The same Python gives the same bytes.
"""

import base64
import gzip
import hashlib
import platform
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.documents.counts import Tally
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

SITE = "http://localhost:7464/"  # the address at which `pydoc -b` would serve these pages
CRAWL_DATE = "2026-01-01T00:00:00Z"  # fixed, so that equal crawls have equal bytes
_RENDERER = Path(__file__).with_name("python_docs_render.py")
_PAGES_PER_CHILD = 200  # if a module breaks the interpreter, at most this many pages are lost
_CHILD_LIMIT_S = 300


@dataclass(frozen=True)
class CrawlTask:
    """File number `index` of `n_files`; it gets every n-th page of the sorted list, so files have about equal size."""

    index: int
    n_files: int
    python: str = f"{platform.python_implementation()} {sys.version}"


def crawl(config: CrawlTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: no input to (`.warc.gz`, trace); modules that cannot be imported are `not_importable`."""
    with open(outputs[0], "wb") as file, write_trace(outputs[1]) as trace:
        tally = Tally("crawl", trace)
        file.write(_warcinfo(f"python-docs-{config.index:05d}.warc.gz"))
        for name, html, error in render_pages(page_names()[config.index :: config.n_files]):
            if error:
                tally.drop("not_importable", 0, name, detail=error)
            else:
                content = html.encode("utf-8", "replace")
                file.write(_response(_url(name), content))
                tally.keep(len(content), len(content))
    return TaskResult([tally.counts()])


def page_names() -> list[str]:
    """List every page: `module NAME` and `topic NAME`."""
    return _run_child(["--list"], "").splitlines()


def render_pages(names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, HTML, error) for each name, in order; one of the last two is empty."""
    waiting = list(names)
    while waiting:
        batch, waiting = waiting[:_PAGES_PER_CHILD], waiting[_PAGES_PER_CHILD:]
        lines = _run_child([], "\n".join(batch)).splitlines()
        for line in lines:
            page = decode_json(line)
            yield page["name"], page.get("html", ""), page.get("error", "")
        if len(lines) < len(batch):  # the import for the next page ended the interpreter, or hung
            yield batch[len(lines)], "", "the interpreter ended while importing it"
            waiting = batch[len(lines) + 1 :] + waiting


def _run_child(arguments: Sequence[str], text: str) -> str:
    """Run the renderer in a fixed environment; return whole lines of output even if it dies or exceeds its time."""
    # -P: files next to the renderer must not hide modules of the standard library. -S -s: import only that library.
    command = [sys.executable, "-P", "-S", "-s", "-W", "ignore", str(_RENDERER), *arguments]
    with tempfile.TemporaryDirectory() as home:
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
        try:
            done = subprocess.run(
                command,
                input=text.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd=home,
                timeout=_CHILD_LIMIT_S,
                check=False,
            )
            output = done.stdout
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
    if arguments and not output:
        raise ConfigError(f"{sys.executable} cannot list its standard library; is this Python complete?")
    return output[: output.rfind(b"\n") + 1].decode()


def _url(name: str) -> str:
    kind, _, word = name.partition(" ")
    return f"{SITE}topic?key={word}" if kind == "topic" else f"{SITE}{word}.html"


def _response(url: str, content: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(content)}\r\n\r\n"
    fields = {
        "WARC-Target-URI": url,
        "Content-Type": "application/http; msgtype=response",
        "WARC-Payload-Digest": _sha1(content),
    }
    return _record("response", url, head.encode() + content, fields)


def _warcinfo(name: str) -> bytes:
    lines = {
        "software": "triaxial prepare, source python-docs",
        "format": "WARC File Format 1.1",
        "description": f"pydoc pages of the standard library of Python {platform.python_version()}",
        "conformsTo": "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/",
    }
    block = "".join(f"{key}: {value}\r\n" for key, value in lines.items()).encode()
    return _record("warcinfo", name, block, {"WARC-Filename": name, "Content-Type": "application/warc-fields"})


def _record(kind: str, name: str, block: bytes, fields: dict[str, str]) -> bytes:
    """Make one record as its own gzip member. Its id is a hash of name and content, so equal pages have equal ids."""
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {name} {hashlib.sha256(block).hexdigest()}")
    head = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{identity}>",
        "WARC-Date": CRAWL_DATE,
        **fields,
        "WARC-Block-Digest": _sha1(block),
        "Content-Length": str(len(block)),
    }
    text = "WARC/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in head.items()) + "\r\n"
    return gzip.compress(text.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0)


def _sha1(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()


CRAWL = Stage("crawl", crawl)
