"""Make the documentation crawl: real pages in valid WARC files, the same bytes each time."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.documents.records import Page
from data_prep.documents.traces import read_trace
from data_prep.inputs.config import InputConfig
from data_prep.readers import python_docs
from data_prep.readers.python_docs import CrawlTask, crawl, page_names, render_pages
from data_prep.readers.readers import read_records

warc = pytest.importorskip("fastwarc.warc", reason="the extra 'data' is not installed")

SHARE = CrawlTask(3, 100)  # every hundredth page


def test_the_list_holds_the_library_without_its_tests():
    names = page_names()
    assert len(names) == len(set(names)) > 500
    assert {"module json", "module json.decoder", "module xml.etree.ElementTree"} <= set(names)
    assert "topic lambda" in names
    unwanted = [
        n for n in names if n.split()[1].split(".")[0] in ("test", "antigravity", "this", "idlelib", "turtledemo")
    ]
    assert unwanted == []
    assert not any(part in ("tests", "__main__") for name in names for part in name.split()[1].split("."))


def test_a_crawl_is_a_valid_warc_with_the_same_bytes_each_time(tmp_path):
    results = [crawl(SHARE, (), (tmp_path / f"{n}.warc.gz", tmp_path / f"{n}.trace")) for n in range(2)]
    data = (tmp_path / "0.warc.gz").read_bytes()
    assert data == (tmp_path / "1.warc.gz").read_bytes()
    (counts,) = results[0].counts
    assert counts.documents_out >= 5
    assert counts.dropped.get("not_importable", 0) == len(list(read_trace(tmp_path / "0.trace")))
    records = list(warc.ArchiveIterator(str(tmp_path / "0.warc.gz"), verify_digests=True, parse_http=False))
    assert len(records) == counts.documents_out + 1, "a record with a wrong digest would be skipped"
    pages = [r for r in read_records(tmp_path / "0.warc.gz", InputConfig(paths=("x",))) if isinstance(r, Page)]
    assert len(pages) == counts.documents_out
    for page in pages:
        assert page.charset == "utf-8"
        assert page.metadata["url"].startswith("http://localhost:7464/")
        assert page.content.rstrip().endswith(b"</html>")
        assert str(Path(sys.base_prefix)).encode() not in page.content, "this machine's paths must not be in the corpus"
    assert len({page.id for page in pages}) == len(pages)


def test_pages_hold_the_text_of_pydoc_and_nothing_of_this_machine(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    pages = {
        name: html for name, html, error in render_pages(["module os", "topic lambda", "module ftplib"]) if not error
    }
    assert len(pages) == 3
    assert "hunter2" not in pages["module os"]
    assert "This exports:" in pages["module os"].replace("&nbsp;", " ")
    assert "anonymous" in pages["topic lambda"]
    assert "0x7" not in pages["module ftplib"]


def test_imports_happen_in_the_children_only():
    code = (
        "import sys\nfrom data_prep.readers.python_docs import render_pages\n"
        "print([error for _, _, error in render_pages(['module tabnanny', 'module no_such_module'])])\n"
        "print('tabnanny' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["['', \"ModuleNotFoundError: No module named 'no_such_module'\"]", "False"]


def test_a_module_that_ends_the_interpreter_loses_only_its_own_page(tmp_path, monkeypatch):
    source = Path(python_docs.__file__).with_name("python_docs_render.py").read_text()
    crash = "    if page.endswith(' crash'):\n        os._exit(9)\n"
    renderer = tmp_path / "render.py"
    renderer.write_text(
        source.replace("    kind, _, name = page.partition", crash + "    kind, _, name = page.partition")
    )
    monkeypatch.setattr(python_docs, "_RENDERER", renderer)
    names = ["module this_is_absent", "module crash", "module bisect", "module crash", "topic lambda"]
    outcome = [(name, bool(html), error) for name, html, error in render_pages(names)]
    assert [(name, html) for name, html, _ in outcome] == [(n, n in ("module bisect", "topic lambda")) for n in names]
    assert outcome[1][2] == outcome[3][2] == "the interpreter ended while importing it"
