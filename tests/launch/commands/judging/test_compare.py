"""`triaxial compare` from two real runs to win rates, and the mistakes that it refuses in one line."""

import json
import re
import shutil

import pytest

from launch.main import main


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Two run directories with the same tokenizer and different weights, and a file of prompts."""
    folder = tmp_path_factory.mktemp("compared")
    for name, step in (("sft", "000000010"), ("ppo", "000000020")):
        shutil.copytree(made.directory, folder / name, ignore=shutil.ignore_patterns("step-*"))
        found = next(path for path in (made.directory / "checkpoints").iterdir() if path.name.endswith(step))
        shutil.copytree(found, folder / name / "checkpoints" / found.name)
    prompts = ["The parser", "reads the source", "then 42"]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text, "id": i}) + "\n" for i, text in enumerate(prompts))
    )
    return folder


def compare(folder, *words, status=0):
    assert main(["compare", *map(str, words), "--device", "cpu"]) == status


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1])


def voted(questions, labeller, choose):
    """The lines that the page saves if the labeller chooses by this rule."""
    for question in questions:
        ranks = choose(question)
        sides = [{**question[side], "rank": rank} for side, rank in zip(("left", "right"), ranks, strict=True)]
        yield json.dumps({"prompt": question["prompt"], "completions": sides, "labeller": labeller}) + "\n"


def test_two_runs_are_compared_and_the_votes_counted(runs, tmp_path, capsys):
    words = (
        runs / "sft",
        runs / "ppo",
        "--prompts",
        runs / "prompts.jsonl",
        "--output",
        tmp_path / "c",
        "--max-new-tokens",
        8,
    )
    compare(runs, *words)
    said = capsys.readouterr().out
    assert "3 questions. Open it in a browser" in said
    page = (tmp_path / "c" / "index.html").read_text()
    assert "ppo" not in page
    assert data_of(page)["questions"]
    key = [json.loads(line) for line in (tmp_path / "c" / "answers.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in key] == ["The parser", "reads the source", "then 42"]
    ours = {answer["id"]: answer["model"] for one in key for answer in one["answers"]}
    compare(runs, *words[:-2], "--max-new-tokens", 8)
    assert data_of((tmp_path / "c" / "index.html").read_text()) == data_of(page), "the same seed asks the same"

    questions = data_of(page)["questions"]
    likes_ppo = lambda question: (1, 2) if ours[question["left"]["id"]] == "ppo" else (2, 1)  # noqa: E731
    (tmp_path / "anna.jsonl").write_text("".join(voted(questions, "Anna", likes_ppo)))
    (tmp_path / "ben.jsonl").write_text("".join(voted(questions[:2], "Ben", likes_ppo)))
    capsys.readouterr()
    compare(
        runs, tmp_path / "c", "--votes", tmp_path / "anna.jsonl", tmp_path / "ben.jsonl", "--json", tmp_path / "v.json"
    )
    said = capsys.readouterr().out
    assert "5 votes: Anna 3, Ben 2" in said
    assert "labellers agree, ties left out: 100.0%" in said
    facts = json.loads((tmp_path / "v.json").read_text())
    assert (facts["win_rates"][0]["first"], facts["win_rates"][0]["wins"], facts["win_rates"][0]["losses"]) == (
        "ppo",
        5,
        0,
    )


def test_answers_may_come_from_a_file_of_generate(runs, tmp_path):
    """As on a layout of many ranks: the answers are those that `compare` generates."""
    words = ["--max-new-tokens", "8", "--device", "cpu"]
    for name in ("sft", "ppo"):
        output = str(tmp_path / f"{name}.jsonl")
        assert (
            main(["generate", str(runs / name), "--input", str(runs / "prompts.jsonl"), "--output", output, *words])
            == 0
        )
    compare(
        runs,
        tmp_path / "sft.jsonl",
        runs / "ppo",
        "--prompts",
        runs / "prompts.jsonl",
        "--output",
        tmp_path / "a",
        *words[:2],
    )
    compare(
        runs,
        runs / "sft",
        tmp_path / "ppo.jsonl",
        "--prompts",
        runs / "prompts.jsonl",
        "--output",
        tmp_path / "b",
        *words[:2],
    )
    texts = [
        [
            [answer["text"] for answer in json.loads(line)["answers"]]
            for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()
        ]
        for name in "ab"
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "a comparison needs at least two"),
        (["RUN", "OTHER"], "--prompts is missing"),
        (["RUN", "RUN", "--prompts", "P", "--output", "O"], "is given twice"),
        (["RUN", "none", "--prompts", "P", "--output", "O"], "none"),
        (["RUN", "OTHER", "--prompts", "none", "--output", "O"], "--prompts none cannot be read"),
        (["RUN", "OTHER", "--prompts", "P", "--output", "O", "--json", "x"], "only for --votes"),
        (["RUN", "OTHER", "--prompts", "P", "--output", "O", "--max-new-tokens", "0"], "at least 1"),
        (["RUN", "OTHER", "--prompts", "P", "--output", "O", "--seed", "-1"], "at least 0"),
        (["RUN", "OTHER", "--prompts", "P", "--output", "P"], "it is a file"),
        (["RUN", "P", "--prompts", "P", "--output", "O"], "has no text 'text'"),
        (["RUN", "OTHER", "--votes", "P"], "valid with one folder only"),
        (["RUN", "--votes", "P"], "is not the folder of a comparison"),
    ],
)
def test_a_mistake_is_one_line(runs, tmp_path, capsys, words, message):
    known = {"RUN": runs / "sft", "OTHER": runs / "ppo", "P": runs / "prompts.jsonl", "O": tmp_path / "out"}
    compare(runs, *[known.get(word, word) for word in words], status=2)
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def test_equal_models_have_nothing_to_compare(runs, tmp_path, capsys):
    shutil.copytree(runs / "sft", tmp_path / "again")
    words = ("--prompts", runs / "prompts.jsonl", "--output", tmp_path / "o", "--max-new-tokens", 4)
    compare(runs, runs / "sft", tmp_path / "again", *words, status=2)
    assert "All 3 pairs of answers are equal" in capsys.readouterr().err


def test_chat_prompts_are_answered_in_the_format_of_each_run(runs, tmp_path, capsys):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}]
    rows = [{"prompt": "The parser"}, {"messages": turns}, {"text": "none"}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--chat", "--prompts", tmp_path / "chats.jsonl", "--output", tmp_path / "c", "--max-new-tokens", 6)
    compare(runs, runs / "sft", runs / "ppo", *words)
    assert "1 records of" in capsys.readouterr().out
    key = [json.loads(line) for line in (tmp_path / "c" / "answers.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in key] == ["The parser", turns]
    for one in key:
        assert len({answer["text"] for answer in one["answers"]}) == 2


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_that_does_not_fit_is_refused_before_the_first_model_answers(runs, tmp_path, capsys, chat):
    rows = [{"prompt": "The parser"}, {"prompt": "reads the source " * 400}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*(["--chat"] if chat else []), "--prompts", tmp_path / "long.jsonl", "--output", tmp_path / "c"]
    compare(runs, runs / "sft", runs / "ppo", *words, status=2)
    said = capsys.readouterr()
    assert "prompts\n" not in said.out, "no model was loaded"
    assert f"long.jsonl, {'record' if chat else 'line'} 2" in said.err
    assert "\n" not in said.err.strip()
