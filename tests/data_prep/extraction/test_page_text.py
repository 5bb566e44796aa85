"""Turn pages into text: find the encoding, extract the main content, remove what is not text."""

import gzip
import re
from pathlib import Path

import pytest

from data_prep.extraction.page_text import ExtractConfig, decode, page_text, tidy
from gpt.errors import ConfigError

pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[4] / "shared/data"


SENTENCES = {
    "windows-1252": "Die Straße führt über den Fluß, “größer” als früher — naïve Gäste.",
    "iso-8859-2": "Zażółć gęślą jaźń i wróć, powiedział król do swojej córki w ogrodzie.",
    "windows-1251": "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "koi8-r": "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "euc-kr": "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "gb18030": "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。寒来暑往,秋收冬藏。",
    "utf-8": "Ελληνικά, 日本語 and naïve café: every script in one page — “quoted”.",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_declared_encodings_are_used(name):
    text = SENTENCES[name]
    assert decode(text.encode(name), name) == text, "from the server's header"
    html = f'<html><head><META http-equiv="x" content="text/html; CHARSET={name}"></head>{text}'
    assert decode(html.encode(name), None) == html, "from the page's own head"


@pytest.mark.parametrize("name", ["windows-1251", "koi8-r", "shift_jis", "euc-kr", "gb18030", "utf-8"])
def test_undeclared_encodings_are_detected(name):
    text = SENTENCES[name] * 20
    assert decode(text.encode(name), None) == text


def test_a_mark_or_valid_utf8_beats_a_wrong_declaration():
    text = SENTENCES["utf-8"]
    assert decode(text.encode("utf-8-sig"), "koi8-r") == text
    assert decode(b"\xff\xfe" + text.encode("utf-16-le"), "utf-8") == text
    assert decode(b"\xfe\xff" + text.encode("utf-16-be"), None) == text
    assert decode(text.encode(), "iso-8859-1") == text, "well-formed UTF-8 wins over the server's default"
    assert decode(SENTENCES["koi8-r"].encode("koi8-r") * 9, "utf-8") == SENTENCES["koi8-r"] * 9
    assert decode(text.encode() * 3 + b"\xff", "utf-8") == text * 3 + "\ufffd", "one bad byte is ignored"
    assert decode("naïve Gäste".encode("cp1252"), "no-such-charset").startswith("na")
    assert decode("日本語テキスト".encode("iso-2022-jp"), "iso-2022-jp") == "日本語テキスト"
    assert decode("日本語テキスト".encode("iso-2022-jp"), "utf-8") == "日本語テキスト", "though valid UTF-8"
    for wide in ("utf-16-le", "utf-16-be"):
        html = f"<html><meta charset=utf-16><p>{SENTENCES['koi8-r']}</p></html>"
        assert decode(html.encode(wide), None) == decode(html.encode(wide), "utf-8") == html, "without a mark"
    html = f'<meta charset="utf-16">{text}'
    assert decode(html.encode(), None) == html, "a declaration readable as ASCII is not in UTF-16"
    html = f"<?xml version='1.0' encoding='koi8-r'?>{SENTENCES['koi8-r']}"
    assert decode(html.encode("koi8-r"), None) == html
    assert decode(b"", None) == ""


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("locale", "names"),
    [
        ("ru-RU", ("windows-1251", "koi8-r", "utf-16-le")),
        ("ja-JP", ("shift_jis", "euc-jp", "iso-2022-jp")),
        ("zh-CN", ("gb18030",)),
        ("zh-TW", ("big5",)),
        ("ko-KR", ("euc-kr",)),
        ("pl-PL", ("iso-8859-2", "windows-1250")),
        ("el-GR", ("iso-8859-7",)),
        ("de-DE", ("windows-1252", "utf-16-be")),
        ("ar-MA", ("windows-1256",)),
    ],
)
def test_real_pages_in_the_encodings_of_their_languages(locale, names):
    path = SHARED / f"multiling/debian-handbook-{locale}-the-debian-project.html.gz"
    html = re.sub(r"<\?xml[^>]*>|<meta[^>]*charset[^>]*>", "", gzip.decompress(path.read_bytes()).decode())
    for name in names:
        data = html.encode(name, "xmlcharrefreplace")
        for declared in (name, None, "utf-8"):
            assert decode(data, declared) == data.decode(name), (name, declared)


def test_main_content_leaves_out_navigation_and_footers():
    body = "".join(f"<p>Paragraph {n} of the article, with enough words to be one.</p>" for n in range(6))
    html = f"""<html><head><title>T</title><script>var hidden = 1;</script></head><body>
      <nav><ul><li><a href="/">Home</a></li><li><a href="/a">About us</a></li></ul></nav>
      <article><h1>Heading</h1>{body}</article><footer>Copyright notice</footer></body></html>"""
    text = page_text(html.encode(), None, True, ExtractConfig())
    assert all(f"Paragraph {n} of" in text for n in range(6))
    for unwanted in ("About us", "Copyright", "hidden"):
        assert unwanted not in text
    assert "About us" in page_text(html.encode(), None, True, ExtractConfig(main_content=False))


def test_plain_text_pages_are_not_parsed():
    assert page_text(b"if a < b:\n    c > d", None, False, ExtractConfig()) == "if a < b:\n    c > d"


def test_tidying_removes_control_characters_and_blank_space():
    assert tidy("\x00a\u00a0b\u00ad \t\r\n\n\n\n  c\x85\x1b\ud800\rd\ufeff ") == "a b\n\n  c\ufffd\nd"


def test_invalid_settings_are_errors():
    for setting, message in [
        ({"max_page_cpu_s": 0}, r"extract\.max_page_cpu_s = 0 is invalid: must be above 0"),
        ({"max_page_memory_bytes": 1000}, "must be at least 67108864"),
        ({"method": "trafilatura", "main_content": False}, "takes the main content only"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ExtractConfig(**setting)
