"""`make docs`: every page of docs/ is in the site and in its search, and no page loads anything from the network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("material", reason="mkdocs-material is not installed; it comes with the extra 'dev'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_search(site):
    sources = sorted((ROOT / "docs").rglob("*.md"))
    pages = {
        site / path.relative_to(ROOT / "docs").with_suffix(".html") for path in sources if path.name != "README.md"
    }
    assert not {page for page in pages if not page.exists()}
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {str(page.relative_to(site)) for page in pages} <= found


def test_no_page_loads_anything_from_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="?(https?:[^">\s]+)', page.read_text())
        loaded += re.findall(r'<link[^>]+rel="?stylesheet"?[^>]+href="?(https?:[^">\s]+)', page.read_text())
        assert not loaded, page
