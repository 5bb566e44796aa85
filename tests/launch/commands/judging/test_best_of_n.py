"""`triaxial best-of-n` with a real model, a real reward run, and a function."""

import json

import numpy as np
import pytest

import triaxial
from launch.main import main


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("asked") / "prompts.jsonl"
    path.write_text('{"prompt": "The parser"}\n{"prompt": "for each"}\n{"text": "none"}\n')
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `length_reward` on the Python path."""
    (tmp_path / "length_reward.py").write_text(
        "def words(prompts, texts):\n    return [float(len(text)) for text in texts]\n"
        "def few(prompts, texts):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def best(made, prompts, output, *words, status=0):
    command = [
        "best-of-n",
        made.directory,
        "--prompts",
        prompts,
        "--output",
        output,
        "--device",
        "cpu",
        "--max-new-tokens",
        6,
    ]
    assert main([str(word) for word in [*command, *words]]) == status


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_answer_by_a_function_is_kept_and_measured_by_a_run(
    made, reward_run, prompts, tmp_path, module, capsys
):
    best(made, prompts, tmp_path / "o", "--reward", "length_reward:words", "--gold", reward_run.run, "--n", 5)
    said = capsys.readouterr().out
    assert "1 records of" in said
    samples, chosen = lines(tmp_path / "o" / "samples.jsonl"), lines(tmp_path / "o" / "best.jsonl")
    assert [one["prompt"] for one in chosen] == ["The parser", "for each"]
    for one, every in zip(chosen, samples, strict=True):
        scores = [answer["score"] for answer in every["completions"]]
        assert len(set(scores)) > 1
        assert one["reward"] == max(scores) == len(one["text"])
    curve = json.loads((tmp_path / "o" / "best_of_n.json").read_text())
    assert [point["n"] for point in curve] == [1, 2, 4]
    means = [[answer["score"] for answer in every["completions"]] for every in samples]
    assert curve[0]["proxy"] == pytest.approx(np.mean(means))
    assert curve[0]["proxy"] < curve[1]["proxy"] < curve[2]["proxy"]
    model = triaxial.load_reward(reward_run.run)
    asked = [
        [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["text"]}] for one in chosen
    ]
    assert [one["gold"] for one in chosen] == pytest.approx(model.score(asked), abs=1e-5)
    best(made, prompts, tmp_path / "again", "--reward", "length_reward:words", "--n", 5)
    assert [one["text"] for one in lines(tmp_path / "again" / "best.jsonl")] == [one["text"] for one in chosen]


def test_compare_takes_the_best_answers_as_a_run(made, prompts, tmp_path, module):
    best(made, prompts, tmp_path / "o", "--reward", "length_reward:words", "--n", 3)
    words = ["--chat", "--prompts", prompts, "--output", tmp_path / "c", "--max-new-tokens", 6, "--device", "cpu"]
    assert main(["compare", *map(str, [made.directory, tmp_path / "o" / "best.jsonl", *words])]) == 0
    key = lines(tmp_path / "c" / "answers.jsonl")
    assert [one["answers"][1]["text"] for one in key] == [one["text"] for one in lines(tmp_path / "o" / "best.jsonl")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "none"], "--reward none is invalid: no such run"),
        (["--reward", "no_module_at_all:f"], "cannot be imported"),
        (["--reward", "length_reward:few"], "returned 1 numbers for 2 responses"),
        (["--reward", "MADE"], "is not a reward run"),
        (["--reward", "length_reward:words", "--n", "0"], "--n 0 is invalid"),
        (["--reward", "length_reward:words", "--temperature", "0"], "all answers would be equal"),
        (["--reward", "length_reward:words", "--output", "P"], "it is a file"),
    ],
)
def test_a_mistake_is_one_line(made, prompts, tmp_path, module, capsys, words, message):
    known = {"MADE": made.directory, "P": prompts}
    best(made, prompts, tmp_path / "o", *[known.get(word, word) for word in words], status=2)
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
