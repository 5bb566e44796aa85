"""A reward run with `pool = "mean"`: command, Python and PPO give the mean of the values of a conversation's tokens."""

import argparse
import json

import numpy as np
import pytest
import torch

import triaxial
from gpt.post_training.ppo.episodes import make_episodes
from gpt.post_training.ppo.rewards import ScalarReward
from gpt.post_training.ppo.rollouts import SampledResponse
from launch.commands.arguments import score
from launch.main import main
from launch.rewards.open_run import opened_reward
from launch.rewards.token_files import ranked_prompts


@pytest.fixture(scope="module")
def mean_run(reward_run, tmp_path_factory):
    run = tmp_path_factory.mktemp("mean") / "run"
    words = ["--objective.pool", "mean", "--run.directory", str(run), "--train.total_steps", "2"]
    assert main(["train", str(reward_run.folder / "recipe.toml"), *words]) == 0
    return run


@torch.no_grad()
def means(module, sequences):
    return [module(torch.from_numpy(ids)[None])[0, :, 0].mean().item() for ids in sequences]


def test_the_command_gives_the_mean_over_the_tokens(mean_run, reward_run, tmp_path):
    file = tmp_path / "rewards.jsonl"
    rankings = reward_run.folder / "validation"
    assert main(["score", str(mean_run), "--rankings", str(rankings), "--rewards", str(file)]) == 0
    found = [json.loads(line)["rewards"] for line in file.read_text().splitlines()]
    model = triaxial.load_reward(mean_run)
    tokenizer = model._run.tokenizer_file
    fingerprint = triaxial.load(reward_run.folder / "base").tokenizer.fingerprint
    prompts = ranked_prompts(rankings, tokenizer=tokenizer, fingerprint=fingerprint)
    for rewards, prompt in zip(found, prompts, strict=True):
        assert rewards == pytest.approx(means(model.module, prompt.completions), abs=1e-5)


def test_ppo_gets_the_mean_over_prompt_and_response(mean_run, reward_run):
    draw = np.random.default_rng(7)
    prompts = [draw.integers(20, 500, size=n).tolist() for n in (3, 5)]
    answers = [draw.integers(20, 500, size=n).tolist() for n in (9, 4)]
    responses = [SampledResponse(answer, [0.0] * len(answer), True) for answer in answers]
    episodes = make_episodes(0, prompts, responses, seq_len=24, version=0)
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    args = parser.parse_args([str(mean_run), "--rankings", str(reward_run.folder / "validation")])
    with opened_reward(args) as opened:
        found = ScalarReward(opened.run.engine).scores(episodes)
    whole = [np.array(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    assert found.tolist() == pytest.approx(means(triaxial.load_reward(mean_run).module, whole), abs=1e-5)
