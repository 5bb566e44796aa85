"""`triaxial.load_reward` gives the rewards that `triaxial score` gives."""

import json

import pytest
import torch

import triaxial
from launch.main import main

QUESTIONS = ["What is one and one?", "Who wrote this?"]
ANSWERS = ["It is two.", "I do not know.", "Nobody, as far as the documents tell."]


def conversation(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_rewards_are_those_of_the_command(reward_run, tmp_path):
    file = tmp_path / "rankings.jsonl"
    lines = [
        {"prompt": question, "completions": [{"text": text, "rank": i} for i, text in enumerate(ANSWERS)]}
        for question in QUESTIONS
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--rankings", str(file), "--rewards", str(tmp_path / "rewards.jsonl")]
    assert main(["score", str(reward_run.run), *words]) == 0
    rewards = [json.loads(line)["rewards"] for line in (tmp_path / "rewards.jsonl").read_text().splitlines()]
    model = triaxial.load_reward(reward_run.run)
    found = [model.score([conversation(question, answer) for answer in ANSWERS]) for question in QUESTIONS]
    assert found == [pytest.approx(each, abs=1e-5) for each in rewards]
    assert len({round(r, 4) for each in found for r in each}) == 6, "rewards differ"
    assert model.score([]) == []
    long = triaxial.load_reward(reward_run.run, dtype="bfloat16").score([conversation(QUESTIONS[0], ANSWERS[0])])
    assert long == [pytest.approx(rewards[0][0], abs=0.1)]


def test_tokens_have_the_value_at_the_last_one(reward_run):
    model = triaxial.load_reward(reward_run.run)
    sequences = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8]]
    expected = [float(model.module(torch.tensor([ids]))[0, -1, 0]) for ids in sequences]
    assert model.score_tokens(sequences) == pytest.approx(expected, abs=1e-6)
    assert model.score_tokens([]) == []
    for ids in ([], [5] * 65):
        with pytest.raises(triaxial.ConfigError, match=rf"sequence 1 has {len(ids)} tokens: must be from 1 to n_ctx"):
            model.score_tokens([[5], ids])


def test_a_mistake_names_the_conversation(reward_run):
    model = triaxial.load_reward(reward_run.run)
    good = conversation("Why?", "So.")
    for bad, message in (
        (good[:1], "conversation 1 is invalid: no_answer: the last message is not the assistant's"),
        ([*good, {"role": "user", "content": "And?"}], "the last message is not the assistant's"),
        (conversation("Why?", "So. " * 100), r"conversation 1 has \d+ tokens: must be at most n_ctx = 64"),
        (good[1:], "conversation 1 is invalid: no_prompt"),
        ([], "conversation 1 is invalid"),
    ):
        with pytest.raises(triaxial.ConfigError, match=message):
            model.score([good, bad])
    with pytest.raises(triaxial.ConfigError, match="is not a reward run: its model predicts tokens"):
        triaxial.load_reward(reward_run.folder / "base")
