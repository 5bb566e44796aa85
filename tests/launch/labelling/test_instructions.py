"""The page for labellers: order of the tree, and hostile text that stays text."""

from html.parser import HTMLParser
from pathlib import Path

from gpt.moderation.taxonomy import parse_taxonomy, read_taxonomy
from launch.labelling.instructions import instructions_page

HOSTILE = "</style></section><script>alert(1)</script><img src=x onerror=alert(1)>\u202egnp.exe \x1b[2J&lt;b&gt;"


class Tags(HTMLParser):
    """The names and attributes of all elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_text_is_shown_and_never_obeyed():
    row = {"id": "A", "title": HOSTILE, "definition": HOSTILE, "instructions": HOSTILE}
    row["examples"] = [{"text": HOSTILE, "label": 1, "reason": HOSTILE}]
    page = instructions_page(parse_taxonomy({"name": "t", "version": 1, "category": [row]}, where="t"))
    found = Tags(page)
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "img", "b", "a", "iframe"}
    assert not any(name.startswith("on") for _, names in found.seen for name in names)
    assert found.text.count("<script>alert(1)</script>") == 5
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_children_follow_their_parents():
    page = instructions_page(read_taxonomy(Path("moderation_openai")))
    marks = [page.index(f"<span class=id>{name}</span>") for name in ("S", "S3", "H", "H2", "V", "V2", "SH", "HR")]
    assert marks == sorted(marks)
    assert "part of H" in page
    assert "severity 3" in page


def test_the_same_taxonomy_gives_the_same_page():
    taxonomy = read_taxonomy(Path("moderation_openai"))
    assert instructions_page(taxonomy) == instructions_page(taxonomy)
