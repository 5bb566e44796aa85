"""Fixtures of the few-shot tests: a random model, options of tasks, published problems, a task of the harness."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.evaluation.few_shot.gpt3_problems import WordList
from gpt.evaluation.few_shot.tasks import FewShotOptions
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer

CHOICES = (" the", " rest", " unscramble the letters", " word")


@pytest.fixture(scope="package")
def model() -> GPT:
    config = ModelConfig(vocab_size=400, n_ctx=96, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
    model = GPT(config)
    initialise(model, config, seed=8)
    return model.requires_grad_(False)


@pytest.fixture(scope="package")
def words() -> WordList:
    """120 words of five letters."""
    made = tuple(f"{a}{b}{c}{d}e" for a in "bcd" for b in "aeiou" for c in "lmnr" for d in "st")
    return WordList(made, "made here")


@pytest.fixture(scope="package")
def choices() -> tuple[str, ...]:
    """The choices of every question of `own_task`."""
    return CHOICES


@pytest.fixture(scope="package")
def options(words: WordList) -> Callable[..., FewShotOptions]:
    """Return a function that makes the options of tasks."""

    def make(*tasks: str, shots: tuple[int, ...] = (0,), limit: int | None = None, **others: Any) -> FewShotOptions:
        return FewShotOptions(**{"tasks": tasks, "shots": shots, "limit": limit, "words": words, **others})

    return make


@pytest.fixture(scope="package")
def log_likelihood() -> Callable[[GPT, Tokenizer, str, str], tuple[float, bool, int]]:
    """Return a function that scores a continuation by one plain forward pass.

    It returns the sum over the tokens, whether each is the most likely, and how many there are.
    """

    def plain(model: GPT, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool, int]:
        head = tokenizer.encode(context)
        tail = tokenizer.encode(context + continuation)[len(head) :]
        log_probs = model(torch.tensor([[*head, *tail][:-1]]))[0, len(head) - 1 :].log_softmax(-1)
        greedy = [int(row.argmax()) == token for row, token in zip(log_probs, tail, strict=True)]
        return sum(float(row[token]) for row, token in zip(log_probs, tail, strict=True)), all(greedy), len(tail)

    return plain


@pytest.fixture
def published(tmp_path: Path, words: WordList) -> Path:
    """A folder like `data` of openai/gpt-3, with 30 sums and 40 scrambled words."""
    rng = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "two_digit_addition.jsonl").open("w") as file:
        for _ in range(30):
            a, b = rng.randrange(100), rng.randrange(100)
            row = {"context": f"\n\nQ: What is {a} plus {b}?\n\nA:", "completion": f" {a + b}"}
            file.write(json.dumps(row) + "\n")
    rows = [{"context": f"\n{word[2:]}{word[:2]} =", "completion": f" {word}"} for word in words.words[:40]]
    packed = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "cycle_letters_in_word.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    return folder


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A multiple-choice task whose data is a file: 12 questions, and 3 examples in another split."""
    from lm_eval import tasks as harness_tasks

    for split, n in (("test", 12), ("train", 3)):
        rows = [{"q": f"{split} Q: {i} plus {i * i}", "choices": CHOICES, "gold": i % 4} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"""task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl, train: {tmp_path}/train.jsonl}}, cache_dir: {tmp_path}/c}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    manager = harness_tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda: manager)
    return "own_choices"


@pytest.fixture(scope="package")
def write_overlap() -> Callable[[Path, dict[str, list[bool]]], Path]:
    """Return a function that writes a file as `triaxial prepare overlap` does."""

    def write(path: Path, sets: dict[str, list[bool]]) -> Path:
        rows = [
            {"set": name, "index": i, "id": "", "dirty": one, "grams": 5, "hits": int(one), "documents": int(one)}
            for name, dirty in sets.items()
            for i, one in enumerate(dirty)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
