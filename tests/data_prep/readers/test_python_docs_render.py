"""Render pages of the documentation crawl: the list, the HTML, and the program that prints both."""

import json
import subprocess
import sys

import pytest

from data_prep.readers.python_docs_render import ADDRESS, join_paragraphs, page_names, render


def test_the_list_has_the_modules_then_the_topics_and_none_twice() -> None:
    names = list(page_names())
    assert len(names) == len(set(names))
    kinds = [name.split(" ")[0] for name in names]
    assert kinds == sorted(kinds), "modules first"
    topics = [name for name in names if name.startswith("topic ")]
    assert topics == sorted(topics)
    assert {"module email", "module email.mime", "module email.mime.text"} <= set(names), "packages inside packages"
    assert not {"module this", "module json.__main__", "module _testcapi"} & set(names)


def test_a_page_is_the_same_each_time_without_this_machines_paths() -> None:
    page = render("module bisect")
    assert page == render("module bisect")
    assert "insort_left" in page
    assert "/usr/lib/python3" in page
    assert sys.base_prefix == "/usr" or sys.base_prefix not in page
    assert "anonymous" in render("topic lambda")


LONG = "The first line of a paragraph that somebody has wrapped,"


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (f"{LONG}\nits end.", f"{LONG} its end."),
        (f"  {LONG}\n  {LONG}\n  its end.\n\nNext.", f"  {LONG} {LONG} its end.\n\nNext."),
        (f"{LONG}\n    its end.", f"{LONG}\n    its end."),  # code, or a list
        ("key -- a name\nvalue -- a number", "key -- a name\nvalue -- a number"),
        (f">>> {LONG}\nits end.", f">>> {LONG}\nits end."),
        ("\n\n", "\n\n"),
        ("", ""),
    ],
)
def test_the_lines_of_wrapped_prose_are_joined_and_others_kept(text: str, joined: str) -> None:
    assert join_paragraphs(text) == joined


def test_a_docstring_is_on_one_line_of_its_page() -> None:
    shown = render("module bisect").replace("&nbsp;", " ")
    assert "The return value i is such that all e in a[:i] have e &lt; x, and all e in" in shown
    assert "where to insert item x in list a, assuming a is sorted" in shown


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("&lt;object object at 0x7f1c2a3b4c5d&gt;", "&lt;object object&gt;"),
        ("&lt;function&nbsp;f&nbsp;at&nbsp;0x7f1c2a3b4c5d&gt;", "&lt;function&nbsp;f&gt;"),
        ("&lt;PyDLL 'None', handle 7f1c2a3b4c5d&gt;", "&lt;PyDLL 'None',&gt;"),
        ("at 0x7f is short enough to be a number of the text", "at 0x7f is short enough to be a number of the text"),
    ],
)
def test_memory_addresses_are_removed(text: str, left: str) -> None:
    assert ADDRESS.sub("", text) == left


def test_the_program_answers_each_name_in_order_whatever_the_modules_print() -> None:
    """`this` prints a poem at import, and `antigravity` would open a browser, so it is not asked for."""
    names = ["module this", "topic lambda", "module no_such_module", "module bisect"]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.readers.python_docs_render"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == "", "the poem is lost"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["name"] for answer in answers] == names
    assert answers[2] == {
        "name": "module no_such_module",
        "error": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert [set(answer) for answer in answers if "error" not in answer] == [{"name", "html"}] * 3
    assert answers[3]["html"] == render("module bisect")
