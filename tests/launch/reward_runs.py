"""For tests: a reward run of a few steps on small rankings."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.token_files.files import TokenFileWriter
from launch.main import main

RECIPE = """
[run]
directory = "{folder}/run"
seed = 3
device = "cpu"
peak_flops_per_s = 1e12
start_from = "{start}"
[objective]
kind = "reward"
[model]
vocab_size = 512
n_ctx = 64
n_layers = 2
d_model = 32
n_heads = 2
[data]
tokenizer = "{tokenizer}"
sampling = "document"
seq_len = 192
train = [{{ path = "{folder}/train", streams = {{ marks = "{folder}/train_marks" }} }}]
validation = [{{ path = "{folder}/validation", streams = {{ marks = "{folder}/validation_marks" }} }}]
[batch]
micro_batch_size = 2
global_batch_tokens = 1536
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_steps = 2
shape = "constant"
[parallel]
precision = "fp32"
[train]
epochs = 1
evaluate_every_steps = 10
[metrics]
wandb = "disabled"
"""


@dataclass(frozen=True)
class RewardRun:
    """A folder with recipe.toml, run/, rankings train and validation, and demonstrations."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"


def write_rankings(folder, name, n, seed):
    """Prompts with two to five completions; more tokens of id 5 at the end are better. Lines as `prepare` writes."""
    draw = np.random.default_rng(seed)
    with (
        TokenFileWriter(folder / name, vocab_size=512) as tokens,
        TokenFileWriter(folder / f"{name}_marks", vocab_size=512) as marks,
        open(folder / f"{name}_rankings.jsonl", "w") as lines,
    ):
        for number in range(n):
            begin = draw.integers(20, 500, size=draw.integers(4, 9))
            ids, levels, scores = [], [], []
            for _ in range(int(draw.integers(2, 6))):
                score = int(draw.integers(0, 4))
                ids.append(
                    np.concatenate([begin, draw.integers(20, 500, size=draw.integers(2, 12)), np.full(score, 5), [3]])
                )
                scores.append(score)
            levels = np.unique(scores, return_inverse=True)[1]
            tokens.add_document(np.concatenate(ids))
            flat = [np.append(np.zeros(len(one) - 1), 1 + level) for one, level in zip(ids, levels, strict=True)]
            marks.add_document(np.concatenate(flat).astype(np.int64))
            facts = {"prompt_id": f"p{number // 2}", "labeller": f"person {number % 2}", "scores": scores}
            lines.write(json.dumps(facts) + "\n")


def make_reward_run(tiny_corpus, folder):
    """Train a language model for two steps, and from it a reward model."""
    write_rankings(folder, "train", 160, seed=1)
    write_rankings(folder, "validation", 40, seed=2)
    with TokenFileWriter(folder / "demonstrations", vocab_size=512) as file:
        draw = np.random.default_rng(3)
        for _ in range(30):
            file.add_document(draw.integers(20, 500, size=draw.integers(3, 64)))
    base = folder / "base"
    words = ["--run.directory", str(base), "--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    assert main(["train", str(tiny_corpus.recipe), *words, "--train.total_tokens", "1024"]) == 0
    recipe = RECIPE.format(folder=folder, start=base, tokenizer=tiny_corpus.folder / "topics.model")
    (folder / "recipe.toml").write_text(recipe)
    assert main(["train", str(folder / "recipe.toml")]) == 0
    return RewardRun(folder)
