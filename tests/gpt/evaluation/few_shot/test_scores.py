"""Few-shot scores through lm-evaluation-harness, against plain forward passes of the model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import make_problems, task_rules, words_of_python
from gpt.evaluation.few_shot.scores import few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, choose_tasks, open_tasks
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

ADD = "gpt3_two_digit_addition"
CONFIG = ModelConfig(vocab_size=400, n_ctx=48, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
LogLikelihood = Callable[[GPT, Tokenizer, str, str], tuple[float, bool, int]]


@pytest.mark.parametrize("same", [True, False])
def test_likelihood_of_the_right_answer(
    model: GPT, tokenizer: Tokenizer, same: bool, options: Callable[..., FewShotOptions], log_likelihood: LogLikelihood
) -> None:
    tasks = open_tasks(options(ADD, shots=(2,), limit=12, answers="likelihood", same_examples=same))
    accuracy, mean = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    task = tasks.generated[f"{ADD}/2"]
    plain = [log_likelihood(model, tokenizer, *instance.args) for instance in task.instances]
    assert (accuracy.metric, mean.metric) == ("acc", "log_likelihood")
    assert accuracy.value == pytest.approx(sum(greedy for _, greedy, _ in plain) / 12)
    assert mean.value == pytest.approx(sum(value for value, _, _ in plain) / 12, abs=1e-4)
    spread = math.sqrt(sum((value - mean.value) ** 2 for value, _, _ in plain) / 11 / 12)
    assert mean.standard_error == pytest.approx(spread, abs=1e-4)


def test_a_repeated_evaluation_shows_the_same_examples(
    own_task: str, model: GPT, tokenizer: Tokenizer, options: Callable[..., FewShotOptions]
) -> None:
    """So the scores at two steps of a training run are for the same questions."""
    tasks = open_tasks(options(own_task, shots=(2,)))
    asked = []
    for _ in range(2):
        few_shot_scores(model, tokenizer, tasks, n_ctx=96)
        asked.append([instance.args for instance in tasks.loaded[0]["tasks"][own_task].instances])
    assert len({context.rpartition("\n\n")[0] for context, _ in asked[0]}) > 1, "each question draws its own examples"
    assert asked[0] == asked[1]


@pytest.fixture(scope="module")
def small_model() -> GPT:
    """A model whose context is too short for three examples."""
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=8)
    return model.requires_grad_(False)


def memorise(texts: list[list[int]], config: ModelConfig) -> GPT:
    """Train a small model until it reproduces these texts."""
    model = GPT(config)
    initialise(model, config, seed=0)
    width = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def test_the_score_is_the_share_of_right_answers_with_its_standard_error(
    tokenizer: Tokenizer, options: Callable[..., FewShotOptions]
) -> None:
    """The model has learnt a third of the answers. The score is that third plus the answers that are right by chance;
    its standard error is sqrt(p (1 - p) / (n - 1))."""
    (rule,), _ = choose_tasks(["gpt3_three_digit_addition"])
    problems = make_problems(rule, seed=0, words=options().words).scored[:30]
    model = memorise([tokenizer.encode(f"{p.question} {p.answer}\n") for p in problems[::3]], CONFIG)
    right = []
    for problem in problems:
        text = tokenizer.encode(problem.question)
        for _ in range(8):
            text.append(int(model(torch.tensor([text]))[0, -1, : tokenizer.vocab_size].argmax()))
        right.append(tokenizer.decode(text).removeprefix(problem.question).partition("\n")[0] == f" {problem.answer}")
    assert all(right[::3])
    assert not all(right)
    tasks = open_tasks(options("gpt3_three_digit_addition", limit=30))
    (result,) = few_shot_scores(model, tokenizer, tasks, n_ctx=48)
    p = sum(right) / 30
    assert result.value == pytest.approx(p)
    assert result.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 29))
    assert (result.task, result.label, result.shots, result.items) == ("gpt3_three_digit_addition", "3D+", 0, 30)


def test_all_fifteen_tasks_run_through_the_harness(
    small_model: GPT, tokenizer: Tokenizer, options: Callable[..., FewShotOptions]
) -> None:
    words = words_of_python()
    reported: list[tuple[int, int]] = []
    scores = few_shot_scores(
        small_model,
        tokenizer,
        open_tasks(options("gpt3", shots=(0, 3), limit=4, words=words)),
        n_ctx=48,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert [(s.label, s.shots) for s in scores] == [(rule.label, k) for rule in task_rules() for k in (0, 3)]
    assert {s.items for s in scores} == {4}
    assert {s.value for s in scores} == {0.0}, "a random model has no right answer"
    assert reported[-1] == (120, 120)
    cut = {s.label: s.truncated for s in scores if s.shots == 3}
    assert cut["5D+"] == 4, "three examples do not fit into 48 tokens"
    assert all(s.truncated == 0 for s in scores if s.shots == 0 and s.label == "2D+")


def test_a_task_of_the_harness_runs_offline(
    tmp_path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    options: Callable[..., FewShotOptions],
    log_likelihood: LogLikelihood,
) -> None:
    """A multiple-choice task of the harness with its data in a local file."""
    from lm_eval import tasks as harness_tasks

    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({"q": f"Q: {i}", "choices": [" the", " rest", " word"], "gold": i % 3}) + "\n" for i in range(9)
        )
    )
    (tmp_path / "own.yaml").write_text(
        f"""task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}, cache_dir: {tmp_path}/cache}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    manager = harness_tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda: manager)
    (result,) = few_shot_scores(model, tokenizer, open_tasks(options("own_choices")), n_ctx=48)
    right = 0
    for i in range(9):
        totals = []
        for choice in (" the", " rest", " word"):
            totals.append(log_likelihood(model, tokenizer, f"Q: {i}", choice)[0])
        right += totals.index(max(totals)) == i % 3
    assert (result.task, result.metric, result.items) == ("own_choices", "acc", 9)
    assert result.value == pytest.approx(right / 9)
    with pytest.raises(ConfigError, match=r"unknown task 'own_choicess'; did you mean 'own_choices'"):
        open_tasks(options("own_choicess"))
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(ConfigError, match="own_choices could not be loaded"):
        open_tasks(options("own_choices"))
