"""The blind page: what it holds, and what it does in a real browser when keys are pressed."""

import html
import json
import re

from data_prep.reports.style import PAGE
from launch.comparison.page import comparison_page


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1])


def test_the_page_names_no_model_and_loads_nothing(page, questions):
    assert len(questions) == 5
    assert "runs/" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert PAGE in page
    assert len(data_of(page)["questions"]) == 5
    assert "onerror" not in page.partition('id="data"')[0]
    assert page.count("<script") == 2, "no text of an answer ends the element of the data"
    nonce = re.search(r"script-src &#x27;nonce-([\w-]+)&#x27;", page)[1]
    assert f'<script nonce="{nonce}">' in page
    assert comparison_page(questions, comparison_id="c0ffee") != page, "another nonce each time"


def test_keys_vote_undo_and_skip_and_the_file_is_a_ranking(driven, page, questions):
    shown = driven("""
        press("1");  // before the start: nothing
        press("Enter");  // without a name: refused
        show("refused", document.getElementById("problem").textContent);
        document.getElementById("labeller").value = "Anna <b>";
        press("Enter");
        press("s"); press("e");  // a skipped question is no vote
        show("unsaved", document.getElementById("problem").textContent + "|" + (blob === null));
        press("u"); press("1"); press("u"); press("2"); press("t"); press("s"); press("ArrowLeft");
        show("state", document.getElementById("count").textContent + "|" + document.getElementById("bar").style.width);
        show("kept", localStorage.getItem("triaxial-comparison-c0ffee:Anna <b>"));
        press("e");
        show("file", await saved());
        press("1"); press("1"); press("Backspace"); press("1");
        show("end", document.getElementById("count").textContent + "|" + document.getElementById("done").hidden);
    """)
    text = {name: html.unescape(found) for name, found in re.findall(r'<pre id="(\w+)">(.*?)</pre>', shown, re.DOTALL)}
    assert text["refused"] == "Give your name first."
    assert text["unsaved"] == "There is no vote to save yet.|true"
    assert text["state"] == "question 5 of 5|80%"
    assert [vote["choice"] for vote in json.loads(text["kept"])] == ["right", "tie", "skip", "left"]
    assert text["end"] == "5 of 5|false"
    assert 'data-file="votes-Anna-b-.jsonl"' in shown
    rows = [json.loads(line) for line in text["file"].split("\n")[:-1]]
    assert [[side["rank"] for side in row["completions"]] for row in rows] == [[2, 1], [1, 1], [1, 2]]
    asked = data_of(page)["questions"]
    for row, i in zip(rows, (0, 1, 3), strict=True):
        assert row["labeller"] == "Anna <b>"
        assert row["comparison"] == "c0ffee"
        assert (row["prompt"], row["prompt_id"]) == (asked[i]["prompt"], asked[i]["prompt_id"])
        assert [side["text"] for side in row["completions"]] == [asked[i]["left"]["text"], asked[i]["right"]["text"]]
        assert [side["id"] for side in row["completions"]] == [
            questions[i].left.answer_id,
            questions[i].right.answer_id,
        ]


def test_votes_are_found_again_and_belong_to_their_labeller(driven):
    """Votes in the form of the test above are in the browser before the page opens."""
    shown = driven(
        """
        show("greeting", document.getElementById("labeller").value + "|" + document.getElementById("kept").textContent);
        press("Enter");
        show("anna", document.getElementById("count").textContent);
        press("t");
        show("kept", localStorage.getItem("triaxial-comparison-c0ffee:Anna"));
        """,
        before="""
        localStorage.setItem("triaxial-comparison-c0ffee", '"Anna"');
        const vote = (choice) => ({ choice, seconds: 1 });
        localStorage.setItem("triaxial-comparison-c0ffee:Anna", JSON.stringify([vote("left"), vote("skip")]));
        localStorage.setItem("triaxial-comparison-c0ffee:Ben", JSON.stringify([vote("left")]));
        """,
    )
    assert '<pre id="greeting">Anna|2 of 5 questions are answered; you continue where you stopped.</pre>' in shown
    assert '<pre id="anna">question 3 of 5</pre>' in shown
    (kept,) = re.findall(r'<pre id="kept">(.*?)</pre>', shown)
    assert [vote["choice"] for vote in json.loads(kept)] == ["left", "skip", "tie"]


def test_hostile_texts_stay_texts(driven):
    shown = driven("""
        document.getElementById("labeller").value = "x";
        press("Enter");
        for (let i = 0; i < 5; i++) {
          show("q" + i, document.getElementById("prompt").innerHTML + document.getElementById("left").innerHTML
            + document.getElementById("right").innerHTML);
          press("t");
        }
        show("title", document.title);
    """)
    assert '<pre id="title">Which answer is better?</pre>' in shown
    questions = [html.unescape(found) for found in re.findall(r'<pre id="q\d">(.*?)</pre>', shown, re.DOTALL)]
    assert sum('&lt;script&gt;document.title="owned"&lt;/script&gt;&lt;img src=x' in one for one in questions) == 2
    assert not any("<img" in one or "<script" in one or "<b>" in one for one in questions)
    assert any("(no text)" in one for one in questions)
    assert any("<h3>assistant</h3>" in one and "Hi &lt;b&gt;" in one for one in questions)
