"""A real browser labels by keyboard: nothing is lost by a reload or a crash, and no text becomes part of the page."""

import pytest

from launch.labelling.page import labelling_page
from launch.labelling.texts import TextToLabel

COUNT = "document.getElementById('count').textContent"


def begun(tab):
    tab.until("document.getElementById('text')?.textContent.length > 0")
    return tab


def label(tab, keys, done):
    """Press keys, then Enter, and wait until the server has counted the answer."""
    for key in keys:
        tab.press(key)
    tab.press("Enter")
    tab.until(f"{COUNT}.startsWith('{done} of')")


def text_of(tab):
    return tab.value("document.getElementById('text').textContent")


def test_fifty_texts_by_keyboard_with_a_reload_and_a_crash_in_the_middle(task_of, serving, browsing, lines):
    marks = {0: "", 1: "a", 2: "b", 3: "l", 4: "l3"}
    with serving(task_of(50)) as server:
        with browsing() as browser:
            tab = begun(browser.page(server.urls["ana"]))
            for i in range(20):
                label(tab, marks[i % 5], i + 1)
            for key in "lx":  # marks of a text that is not finished
                tab.press(key)
            tab.press("2")  # x has no severity: the number is ignored
            tab.reload()
            begun(tab)
            assert tab.value(f"{COUNT}").startswith("20 of 50")
            pressed = "[...document.querySelectorAll('.mark')].map((one) => one.getAttribute('aria-pressed')).join()"
            assert tab.value(pressed) == "false,false,true,true", "the marks are still there"
            tab.press("x")
            tab.press("l")
            for i in range(20, 35):
                label(tab, marks[i % 5], i + 1)
            browser.kill()
        with browsing() as browser:
            tab = begun(browser.page(server.urls["ana"]))
            assert tab.value(f"{COUNT}").startswith("35 of 50")
            for i in range(35, 50):
                label(tab, marks[i % 5], i + 1)
            assert tab.value("!document.getElementById('done').hidden")
    found = lines()
    # the text that the killed browser showed comes last
    assert [line["id"] for line in found] == [f"t{i}" for i in (*range(35), *range(36, 50), 35)]
    assert {line["labeller"] for line in found} == {"ana"}
    none = {"A": 0, "B": 0, "L": 0, "L3": 0, "X": 0}
    want = {
        0: none,
        1: {**none, "A": 1},
        2: {**none, "A": 1, "B": 1},
        3: {**none, "L": 1},
        4: {**none, "L": 1, "L3": 1},
    }
    assert [line["labels"] for line in found] == [want[i % 5] for i in range(50)], "a bird is an animal"
    assert [line.get("severity") for line in found[3:5]] == [{"L": 1}, {"L": 3}]
    assert all(0 <= line["seconds"] < 600 for line in found)


def test_hostile_texts_keys_two_windows_and_a_server_that_is_away(task_of, serving, browsing, lines, hostile):
    texts = [TextToLabel(f"t{i}", f"{hostile} {i}") for i in range(6)]
    with browsing() as browser:
        with serving(task_of(texts=texts), ["ana", hostile.replace("\u2028", "")[:80]], blur=True) as server:
            tab = begun(browser.page(server.urls["ana"]))
            assert text_of(tab) == f"{hostile} 0"
            other = begun(browser.page(server.urls["ana"]))
            assert text_of(other) == f"{hostile} 1", "a second window gets another text"
            begun(browser.page(list(server.urls.values())[1]))
            assert tab.value("document.body.className") == "blurred"
            tab.press(" ")
            assert tab.value("document.body.className") == ""
            tab.press("x", shift=True)
            tab.press("x")
            tab.press("b", shift=True)
            label(tab, "", 1)
            assert tab.value("document.body.className") == "blurred", "the next text is blurred again"
            tab.press("ArrowRight")  # skips t2
            tab.until(f"{COUNT}.startsWith('2 of')")
            tab.press("Backspace")
            tab.until(f"{COUNT}.startsWith('1 of')")
            assert text_of(tab) == f"{hostile} 2"
            tab.press("?")
            tab.until("document.getElementById('help').open")
            tab.press("a")  # the window of keys takes it
            tab.press("Escape")
            tab.until("!document.getElementById('help').open")
            assert tab.value("document.querySelectorAll('.row.yes').length") == 0
            for page in (tab, other):
                assert page.value("document.title") == "Label texts"
                assert page.value("document.images.length + document.querySelectorAll('main b:not(li b)').length") == 0
            port = server.server_port
            token = server.tokens["ana"]
        tab.press("a")
        tab.press("Enter")  # the server is away: the page keeps the answer
        tab.until("!document.getElementById('problem').hidden")
        with serving(task_of(texts=texts), ["ana"], port=port) as server:
            server.tokens["ana"] = token
            tab.until(f"{COUNT}.startsWith('2 of')")
            assert tab.value("document.getElementById('problem').hidden")
            server.tokens["ana"] = "another"
            tab.press("Enter")
            tab.until("document.getElementById('problem').textContent.includes('no longer valid')")
        thrown = [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
        assert thrown == []
    found = [(line["id"], line["labels"]) for line in lines()]
    assert found == [
        ("t0", {"A": None, "B": None, "L": 0, "L3": 0, "X": 1}),
        ("t2", {}),
        ("t2", {}),
        ("t2", {"A": 1, "B": 0, "L": 0, "L3": 0, "X": 0}),
    ], "an unsure bird leaves the animal unsure"


def test_a_finger_can_say_unsure_and_few_categories_leave_no_gap(task_of, serving, browsing):
    with serving(task_of(2)) as server, browsing() as browser:
        tab = begun(browser.page(server.urls["ana"], width=400))
        by_hand = """(type) => {
            const mark = document.querySelector('.mark');
            if (type) mark.dispatchEvent(new PointerEvent('pointerdown', {pointerType: type}));
            mark.dispatchEvent(new MouseEvent('click')); // older browsers say no pointerType here
            return mark.getAttribute('aria-pressed');
        }"""
        for kind, want in (
            ("touch", ["true", "mixed", "false"]),
            ("pen", ["true", "mixed", "false"]),
            ("mouse", ["true", "false", "true"]),
            ("", ["false", "true", "false"]),  # by the keyboard or a screen reader
        ):
            assert [tab.value(f"({by_hand})('{kind}')") for _ in range(3)] == want, kind
        gap = "document.getElementById('about').getBoundingClientRect().top"
        end = "[...document.querySelectorAll('#categories .row')].at(-1).getBoundingClientRect().bottom"
        assert tab.value(f"{gap} - {end}") < 24  # pixels


def test_a_phone_shows_that_a_text_goes_on_and_has_the_help(task_of, serving, browsing, tmp_path):
    """The last rows of a long text are shaded until its end is there. A phone hides the scroll bar."""
    texts = [TextToLabel("t0", "A text of many words. " * 60), TextToLabel("t1", "Short.")]

    def shade(tab):
        """The darkest channel of the last rows of the text's card, left of the words: 0 to 255."""
        tab.picture(tmp_path / "card.png")
        left, bottom = tab.value(
            "(({left, bottom}) => [left, bottom])(document.getElementById('text').getBoundingClientRect())"
        )
        with image.open(tmp_path / "card.png") as found:
            rows = found.convert("RGB").crop((int(left) + 5, int(bottom) - 5, int(left) + 7, int(bottom) - 2))
            return min(low for low, _ in rows.getextrema())

    image = pytest.importorskip("PIL.Image")
    with serving(task_of(texts=texts)) as server, browsing() as browser:
        tab = begun(browser.page(server.urls["ana"], width=390, height=844))
        whole = shade(tab)
        tab.value("document.getElementById('text').scrollTop = 1e6")
        assert whole < 200 < 225 < shade(tab)
        tab.value("document.querySelector('[data-action=help]').click()")
        assert tab.value("document.getElementById('help').open && document.getElementById('help').scrollWidth") <= 390
        assert "tap twice" in tab.value("document.getElementById('help-rows').innerText")


def test_the_end_thanks_for_labels_and_not_for_skipped_texts(task_of, serving, browsing):
    with serving(task_of(1)) as server, browsing() as browser:
        tab = begun(browser.page(server.urls["ana"]))
        title = "document.getElementById('done').innerText.split('\\n')[0]"
        tab.press("ArrowRight")
        tab.until("!document.getElementById('done').hidden")
        assert tab.value(title) == "No other text is left."
        tab.value("document.getElementById('ask-skipped').click()")
        tab.until("document.getElementById('done').hidden")
        tab.press("Enter")
        tab.until("!document.getElementById('done').hidden")
        assert tab.value(title) == "All texts are labelled. Thank you."


def test_the_page_runs_its_own_script_only(taxonomy, hostile):
    page = labelling_page(taxonomy, labeller=hostile, blur=False)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
