"""Questions of MT-bench and the form of their answers; tests/launch/commands/judging/test_answer.py answers some."""

from pathlib import Path

import pytest

from launch.evaluation.judge_questions import TEMPERATURES, JudgeQuestion, answer_line, read_questions

MT_BENCH = Path(__file__).parents[4] / "shared" / "data" / "other" / "instruct" / "mt-bench-question.jsonl"


def test_the_line_of_an_answer_depends_on_the_model_and_the_answers():
    question = JudgeQuestion(81, "writing", ("a", "b"), "line 1")
    line = answer_line(question, ["x", "y"], model_id="ppo")
    assert (line["question_id"], line["model_id"], line["choices"]) == (81, "ppo", [{"index": 0, "turns": ["x", "y"]}])
    ids = {answer_line(question, answers, model_id=name)["answer_id"] for answers in (["x"], ["y"]) for name in "ab"}
    assert len(ids) == 4


def test_mt_bench_itself_is_read():
    if not MT_BENCH.is_file():
        pytest.skip("no MT-bench on this machine")
    questions = read_questions(MT_BENCH)
    assert len(questions) == 80
    assert {len(question.turns) for question in questions} == {2}
    assert {question.category for question in questions} == set(TEMPERATURES)
