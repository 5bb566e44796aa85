"""Pages become text: the right encoding, the body without its surroundings, nothing that is not text."""

import json
from pathlib import Path

import pytest

from data_prep.extract import ExtractConfig, decode, page_text, tidy
from data_prep.readers import InputConfig, read_records
from data_prep.web_archives import Page

pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[3] / "shared/data"
SENTENCES = {
    "windows-1252": "Die Straße führt über den Fluß, “größer” als früher — naïve Gäste.",
    "iso-8859-2": "Zażółć gęślą jaźń i wróć, powiedział król do swojej córki w ogrodzie.",
    "koi8-r": "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "euc-kr": "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "gb18030": "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。寒来暑往,秋收冬藏。",
    "utf-8": "Ελληνικά, 日本語 and naïve café: every script in one page — “quoted”.",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_declared_encodings(name):
    text = SENTENCES[name]
    assert decode(text.encode(name), name) == text, "from the server's header"
    html = f'<html><head><META http-equiv="x" content="text/html; CHARSET={name}"></head>{text}'
    assert decode(html.encode(name), None) == html, "from the page's own head"


@pytest.mark.parametrize("name", ["koi8-r", "shift_jis", "euc-kr", "gb18030", "utf-8"])
def test_undeclared_encodings_are_detected(name):
    text = SENTENCES[name] * 20
    assert decode(text.encode(name), None) == text


def test_marks_and_wrong_declarations():
    text = SENTENCES["utf-8"]
    assert decode(text.encode("utf-8-sig"), "koi8-r") == text
    assert decode(b"\xff\xfe" + text.encode("utf-16-le"), "utf-8") == text
    assert decode(b"\xfe\xff" + text.encode("utf-16-be"), None) == text
    assert decode(text.encode(), "iso-8859-1") == text, "well-formed UTF-8 wins over the server's default"
    assert decode(SENTENCES["koi8-r"].encode("koi8-r") * 9, "utf-8") == SENTENCES["koi8-r"] * 9
    assert decode(text.encode() * 3 + b"\xff", "utf-8") == text * 3 + "\ufffd", "one bad byte is no other encoding"
    assert decode("naïve Gäste".encode("cp1252"), "no-such-charset").startswith("na")
    assert decode("日本語テキスト".encode("iso-2022-jp"), "iso-2022-jp") == "日本語テキスト"
    assert decode(b"", None) == ""


def test_main_content_leaves_the_surroundings_out():
    body = "".join(f"<p>Paragraph {n} of the article, with enough words to be one.</p>" for n in range(6))
    html = f"""<html><head><title>T</title><script>var hidden = 1;</script></head><body>
      <nav><ul><li><a href="/">Home</a></li><li><a href="/a">About us</a></li></ul></nav>
      <article><h1>Heading</h1>{body}</article><footer>Copyright notice</footer></body></html>"""
    page = Page("id", html.encode(), None, True, {"url": "u"})
    document = page_text(page, ExtractConfig())
    assert document is not None
    assert (document.id, document.metadata) == ("id", {"url": "u"})
    assert all(f"Paragraph {n} of" in document.text for n in range(6))
    for unwanted in ("About us", "Copyright", "hidden"):
        assert unwanted not in document.text
    everything = page_text(page, ExtractConfig(main_content=False))
    assert everything is not None
    assert "About us" in everything.text


def test_plain_text_pages_are_not_parsed():
    document = page_text(Page("id", b"if a < b:\n    c > d", None, False, {}), ExtractConfig())
    assert document is not None
    assert document.text == "if a < b:\n    c > d"


def test_tidy():
    assert tidy("\x00a\u00a0b\u00ad \t\r\n\n\n\n  c\x85\x1b\ud800\rd\ufeff ") == "a b\n\n  c\ufffd\nd"


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_real_pages_against_their_gold_text():
    """91 real news and blog pages: nearly all words of the articles are there, and not much else."""
    gold = {
        key: value["articleBody"]
        for key, value in json.loads((SHARED / "html/aeb-ground-truth.json").read_text()).items()
    }
    by_words = [frozenset(body.split()) for body in gold.values()]
    recalls, precisions = [], []
    for record in read_records(SHARED / "warc/aeb-00000.warc.gz", InputConfig(paths=("x",))):
        assert isinstance(record, Page)
        document = page_text(record, ExtractConfig())
        assert document is not None
        words = frozenset(document.text.split())
        best = max(by_words, key=lambda body: len(body & words) / max(len(body), 1))
        recalls.append(len(best & words) / max(len(best), 1))
        precisions.append(len(best & words) / max(len(words), 1))
    assert sorted(recalls)[len(recalls) // 2] > 0.95
    assert sorted(precisions)[len(precisions) // 2] > 0.75
