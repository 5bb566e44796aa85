"""`triaxial answer` writes what FastChat's judge reads, and answers each turn after the ones before."""

import json

import pytest

from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from launch.comparison.prompts import read_conversations
from launch.generation.chat import ChatSettings, answer_chats
from launch.main import main
from launch.runs.chat_format import chat_encoder
from launch.runs.saved_run import load_run

QUESTIONS = [
    {"question_id": 81, "category": "math", "turns": ["The parser", "reads"]},
    {"question_id": "b", "category": "writing", "turns": ["for each"]},
    {"question_id": 83, "turns": ["word " * 60, "then 42"]},
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "question.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def answer(made, questions, output, *words, status=0):
    command = ["answer", made.directory, "--questions", questions, "--output", output, "--device", "cpu", *words]
    assert main([str(word) for word in command]) == status
    return [json.loads(line) for line in output.read_text().splitlines()] if status == 0 else []


def test_each_turn_is_answered_in_fastchats_form(made, questions, tmp_path, capsys):
    lines = answer(made, questions, tmp_path / "a.jsonl", "--max-new-tokens", 6, "--model-id", "ppo")
    assert "note: 2 turns have no answer: longer than the context" in capsys.readouterr().out
    assert [line["question_id"] for line in lines] == [81, "b", 83]
    assert [len(line["choices"][0]["turns"]) for line in lines] == [2, 1, 2]
    assert lines[2]["choices"][0]["turns"] == ["", ""]
    assert all(line.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"} for line in lines)
    assert {line["model_id"] for line in lines} == {"ppo"}
    again = answer(made, questions, tmp_path / "b.jsonl", "--max-new-tokens", 6, "--model-id", "ppo")
    assert [line["choices"] for line in lines] == [line["choices"] for line in again]


def test_a_later_turn_sees_the_answer_before(made, questions, tmp_path):
    """The second turn of a greedy question equals that of a conversation with its first answer."""
    first = answer(made, questions, tmp_path / "a.jsonl", "--max-new-tokens", 6, "--temperature", 0)[0]
    turns = first["choices"][0]["turns"]
    chat = [{"role": "user", "content": "The parser"}, {"role": "assistant", "content": turns[0]},
            {"role": "user", "content": "reads"}]  # fmt: skip
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    loaded = load_run(made.directory)
    prompts = [one.chat for one in read_conversations(tmp_path / "p.jsonl")[0]]
    with chat_encoder(loaded.saved) as encoder:
        found = answer_chats(
            LocalModel(loaded.model), loaded.saved, encoder, prompts, ChatSettings(Sampling(0.0), 6), seeds=[0]
        )
    assert found == [turns[1]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-new-tokens", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--temperature", "-1"], "temperature"),
        (["--output", "none/x"], "--output none/x"),
        (["--questions", "none"], "--questions none cannot be read"),
        (["--questions", "BAD"], "line 1 must be an object with 'question_id' and 'turns'"),
        (["--questions", "EMPTY"], "has no lines"),
    ],
)
def test_a_mistake_is_one_line(made, questions, tmp_path, capsys, words, message):
    (tmp_path / "bad.jsonl").write_text('{"question_id": 1, "turns": []}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    known = {"BAD": tmp_path / "bad.jsonl", "EMPTY": tmp_path / "empty.jsonl"}
    answer(made, questions, tmp_path / "a.jsonl", *[known.get(word, word) for word in words], status=2)
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


@pytest.mark.timeout(240)
def test_a_layout_of_two_ranks_gives_the_same_answers(made, questions, tmp_path):
    words = ("--max-new-tokens", 6, "--temperature", 0)
    alone = answer(made, questions, tmp_path / "a.jsonl", *words)
    two = answer(made, questions, tmp_path / "b.jsonl", *words, "--nproc", 2, "--parallel.tensor", 2)
    assert [line["choices"] for line in two] == [line["choices"] for line in alone]
