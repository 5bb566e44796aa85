"""A small base model, a reward model and prompts, made once, and a recipe of PPO on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main

RECIPE = """
[run]
directory = "{folder}/ppo"
start_from = "{folder}/base"
seed = 3
device = "cpu"
peak_flops_per_s = 1e12
[model]
vocab_size = 512
n_ctx = 64
n_layers = 2
d_model = 32
n_heads = 2
[data]
tokenizer = "{corpus}/topics.model"
seq_len = 32
sampling = "document"
train = [{{ path = "{folder}/prompts" }}]
[batch]
micro_batch_size = 2
global_batch_tokens = 512
[optimizer]
learning_rate = 1e-3
[schedule]
shape = "constant"
warmup_tokens = 0
[parallel]
precision = "fp32"
[train]
total_steps = 2
[checkpoint]
every_steps = 1
[metrics]
wandb = "disabled"
[objective]
kind = "ppo"
rewards = [{{ run = "{folder}/rm" }}, {{ function = "ppo_rewards:short", weight = 0.5 }}]
gold = [{{ function = "ppo_rewards:letters" }}]
max_response_tokens = 12
minibatch_episodes = 8
rollout_rows = 3
rollout_part = 4
"""
PPO = """
value_learning_rate = 1e-3
ptx = [{{ path = "{corpus}/train" }}]
ptx_per_episode = 1
"""
GRPO = """
group_size = 4
beta = 0.1
"""
REWARDS = """
def short(prompts, responses):
    return [-len(response) / 50 for response in responses]

def letters(prompts, responses):
    return [response.count("e") / 10 for response in responses]

def broken(prompts, responses):
    raise ValueError("no score today")

def too_few(prompts, responses):
    return [1.0]

def sometimes_nan(prompts, responses):
    return [float("nan") if "e" in response else 1.0 for response in responses]
"""
BASE = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--checkpoint.every_tokens", "1000000"]


@dataclass(frozen=True)
class Instruct:
    """A folder with base/, rm/, prompts.bin/.idx, ppo_rewards.py, ppo.toml and grpo.toml."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "ppo.toml"

    @property
    def group_recipe(self) -> Path:
        return self.folder / "grpo.toml"


@pytest.fixture(scope="session")
def instruct(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Instruct:
    folder = tmp_path_factory.mktemp("instruct")
    tokenizer = load_tokenizer(tiny_corpus.folder / "topics.model")
    write_prompts(folder, tokenizer)
    write_rankings(folder, tokenizer)
    (folder / "ppo_rewards.py").write_text(REWARDS)
    (folder / "ppo.toml").write_text((RECIPE + PPO).format(folder=folder, corpus=tiny_corpus.folder))
    shared = RECIPE.replace('kind = "ppo"', 'kind = "grpo"')
    (folder / "grpo.toml").write_text((shared + GRPO).format(folder=folder, corpus=tiny_corpus.folder))
    words = ["train", str(tiny_corpus.recipe), *BASE]
    base = [*words, "--run.directory", str(folder / "base"), "--train.total_tokens", "2048", "--data.validation", "[]"]
    assert main(base) == 0
    streams = f'{{ marks = "{folder}/rankings_marks" }}'
    reward = ["--objective.kind", "reward", "--run.start_from", str(folder / "base"), "--data.sampling", "document"]
    data = f'[{{ path = "{folder}/rankings", streams = {streams} }}]'
    reward += ["--run.directory", str(folder / "rm"), "--train.total_tokens", "1024", "--data.train", data]
    assert main([*words, *reward, "--data.validation", "[]"]) == 0
    return Instruct(folder)


def write_prompts(folder: Path, tokenizer: Any) -> None:
    with TokenFileWriter(folder / "prompts", vocab_size=512) as writer:
        for i in range(40):
            ids = tokenizer.encode(f"The statement number {i} of the class")
            writer.add_document(np.array(ids[: 3 + i % 10]))


def write_rankings(folder: Path, tokenizer: Any) -> None:
    """Two completions of a prompt in one document; the shorter one is better."""
    end = tokenizer.end_of_document_id
    with (
        TokenFileWriter(folder / "rankings", vocab_size=512) as tokens,
        TokenFileWriter(folder / "rankings_marks", vocab_size=512) as marks,
    ):
        for i in range(24):
            prompt = tokenizer.encode(f"Item {i}")[:6]
            completions = [[*prompt, *[40 + i] * n, end] for n in (2, 9)]
            tokens.add_document(np.array([*completions[0], *completions[1]]))
            rows = [[0] * (len(completion) - 1) + [2 - k] for k, completion in enumerate(completions)]
            marks.add_document(np.array([*rows[0], *rows[1]]))
