"""Every message that the page on troubleshooting quotes is one that the code can print."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guides/troubleshooting.md"
QUOTES = [
    quote
    for line in PAGE.read_text().splitlines()
    if line.startswith("**`")
    for quote in re.findall(r"\*\*`([^`]+)`\*\*", line)
]


def text_of(node):
    """The text of a string in the code, with "..." for each value that is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
    return ""


@pytest.fixture(scope="module")
def texts():
    files = [path for package in ("gpt", "parallel", "data_prep", "launch") for path in (ROOT / package).rglob("*.py")]
    return [text_of(node) for path in files for node in ast.walk(ast.parse(path.read_text()))]


def test_the_page_quotes_messages():
    assert len(QUOTES) > 15


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_exists(texts, quote):
    parts = [part.strip() for part in quote.split("...") if part.strip()]
    assert parts
    pattern = re.compile(".*".join(map(re.escape, parts)), flags=re.DOTALL)
    assert any(pattern.search(text) for text in texts), f"no message has these words in this order: {parts}"
