"""The page of `triaxial demo --instruct`: marks with intervals, and answers that are escaped."""

from gpt.evaluation.intervals import bootstrap_interval
from launch.demos.side_by_side import Answered, page


def model(name: str, *answers: str) -> Answered:
    given = tuple(0.5 for _ in answers)
    return Answered(name, answers, given, bootstrap_interval([[mark] for mark in given]))


def test_every_answer_is_on_the_page_and_harmless():
    prompts = ["first <prompt>", "second"]
    text = page(prompts, [model("base", "<script>alert(1)</script>", "b"), model("PPO", "c", "d & e")])
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; <i>0.50</i>" in text
    assert "first &lt;prompt&gt;" in text
    assert "d &amp; e" in text
    assert "mean mark, 95%: 0.50 to 0.50" in text
    assert "2 prompts that no training has seen" in text
