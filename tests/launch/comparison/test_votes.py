"""Files of votes joined with the answers; what is no vote is one line."""

import json

import pytest

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.shapes import conversations_in, shape_of
from gpt.errors import ConfigError
from launch.comparison.questions import answered_prompts, make_questions, prompt_record
from launch.comparison.votes import ANSWERS, read_key, read_votes


@pytest.fixture
def folder(tmp_path):
    prompts = answered_prompts(["p", "q"], {"sft": ["one two", "x"], "ppo": ["one", "y"]}, seed=0)
    (tmp_path / ANSWERS).write_text("".join(json.dumps(prompt_record(one)) + "\n" for one in prompts))
    return tmp_path


def votes_file(folder, name, *rows):
    questions, _ = make_questions(
        answered_prompts(["p", "q"], {"sft": ["one two", "x"], "ppo": ["one", "y"]}, seed=0), seed=0
    )
    lines = []
    for question, labeller, left, right in rows:
        asked = next(one for one in questions if one.prompt.prompt == question)
        sides = [{"text": asked.left.text, "rank": left, "id": asked.left.answer_id},
                 {"text": asked.right.text, "rank": right, "id": asked.right.answer_id}]  # fmt: skip
        lines.append(json.dumps({"prompt": question, "completions": sides, "labeller": labeller}))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    left_models = {one.prompt.prompt: one.left.model for one in questions}
    return path, left_models


def test_a_vote_names_models_in_the_order_of_their_names(folder):
    path, left = votes_file(folder, "a.jsonl", ("p", "Anna", 1, 2), ("q", "Anna", 1, 1))
    votes, n_replaced = read_votes([path], read_key(folder))
    assert n_replaced == 0
    assert [(vote.first, vote.second) for vote in votes] == [("ppo", "sft")] * 2
    assert votes[0].outcome == ("first" if left["p"] == "ppo" else "second")
    assert votes[0].first_is_left == (left["p"] == "ppo")
    assert (votes[0].more_words, votes[1].more_words) == ("second", "tie")
    assert votes[1].outcome == "tie"


def test_the_later_vote_of_a_labeller_counts(folder):
    path, _ = votes_file(folder, "a.jsonl", ("p", "Anna", 1, 2), ("p", "Ben", 1, 2), ("p", "Anna", 1, 1))
    votes, n_replaced = read_votes([path], read_key(folder))
    assert (len(votes), n_replaced) == (2, 1)
    assert next(vote.outcome for vote in votes if vote.labeller == "Anna") == "tie"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1 must be a JSON object"),
        ("{", "line 1 is not JSON"),
        ('{"labeller": 3}', "line 1 is no vote: it needs a labeller and two completions"),
        ('{"labeller": "A", "completions": [{"rank": 1}, {"rank": 9}]}', "another comparison"),
        ('{"labeller": "A", "completions": [{"rank": true}, {"rank": 2}]}', "must be 1 or 2"),
        ('{"labeller": "A", "completions": [3, 4]}', "must be 1 or 2"),
    ],
)
def test_what_is_no_vote_is_one_line(folder, line, message):
    (folder / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_votes([folder / "bad.jsonl"], read_key(folder))


def test_two_answers_of_one_model_are_no_vote(folder):
    path, _ = votes_file(folder, "a.jsonl", ("p", "Anna", 1, 2))
    row = json.loads(path.read_text())
    row["completions"][1]["id"] = row["completions"][0]["id"]
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="not two models' answers to one prompt"):
        read_votes([path], read_key(folder))


def test_a_folder_without_answers_and_a_missing_file_are_one_line(tmp_path, folder):
    with pytest.raises(ConfigError, match="is not the folder of a comparison"):
        read_key(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_votes([tmp_path / "none.jsonl"], read_key(folder))
    (folder / ANSWERS).write_text('{"answers": [{}]}\n')
    with pytest.raises(ConfigError, match="is damaged"):
        read_key(folder)


def test_a_file_of_votes_is_a_file_of_rankings(folder):
    """By the reader of `triaxial prepare`: a reward model can learn from it."""
    path, _ = votes_file(folder, "a.jsonl", ("p", "Anna", 1, 2), ("q", "Ben", 2, 1), ("p", "Ben", 1, 1))
    found = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert shape_of(record) == "ranking"
        found += [one for one, _ in conversations_in(record, "ranking", ConversationsConfig("rankings"))]
    assert [[answer.level for answer in one.answers] for one in found[:2]] == [[1, 0], [0, 1]]
    assert [one.labeller for one in found[:2]] == ["Anna", "Ben"]
    assert found[0].prompt[0].text == "p"
    assert found[2].reason == "all_tied", "a lone tie teaches nothing"
