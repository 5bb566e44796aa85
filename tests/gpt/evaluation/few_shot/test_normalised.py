"""The GPT-3 paper's rules for choices, against plain forward passes."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.normalised import check_rules
from gpt.evaluation.few_shot.scores import few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

LogLikelihood = Callable[[GPT, Tokenizer, str, str], tuple[float, bool, int]]
WriteOverlap = Callable[[Path, dict[str, list[bool]]], Path]


def test_choices_by_every_rule_over_all_clean_and_dirty_items(
    own_task: str,
    model: GPT,
    tokenizer: Tokenizer,
    tmp_path: Path,
    options: Callable[..., FewShotOptions],
    log_likelihood: LogLikelihood,
    write_overlap: WriteOverlap,
    choices: tuple[str, ...],
) -> None:
    dirty = [i in (1, 5, 6, 10) for i in range(12)]
    file = write_overlap(tmp_path / "examples.jsonl", {own_task: dirty, "another": [True]})
    asked = options(own_task, normalise=("tokens", "answer"), clean_subset=file)
    scores = {score.metric: score for score in few_shot_scores(model, tokenizer, open_tasks(asked), n_ctx=96)}
    assert list(scores) == ["acc", "acc_per_token", "acc_over_answer"]
    alone = [log_likelihood(model, tokenizer, "Answer:", choice)[0] for choice in choices]
    right: dict[str, list[bool]] = {metric: [] for metric in scores}
    for i in range(12):
        plain = [log_likelihood(model, tokenizer, f"test Q: {i} plus {i * i}", choice) for choice in choices]
        values = {
            "acc": [value for value, _, _ in plain],
            "acc_per_token": [value / n for value, _, n in plain],
            "acc_over_answer": [value - other for (value, _, _), other in zip(plain, alone, strict=True)],
        }
        for metric, found in values.items():
            right[metric].append(found.index(max(found)) == i % 4)
    assert len({tuple(values) for values in right.values()}) == 3, "the rules differ on these questions"
    for metric, score in scores.items():
        for part, chosen in (
            ("", right[metric]),
            ("clean_", [r for r, d in zip(right[metric], dirty, strict=True) if not d]),
            ("dirty_", [r for r, d in zip(right[metric], dirty, strict=True) if d]),
        ):
            p, n = sum(chosen) / len(chosen), len(chosen)
            assert getattr(score, f"{part}value") == pytest.approx(p)
            assert getattr(score, f"{part}standard_error") == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
            assert getattr(score, f"{part}items") == n


def test_an_unknown_rule_is_refused() -> None:
    check_rules(("tokens", "answer"))
    with pytest.raises(ConfigError, match="--normalise length is invalid: the rules are tokens and answer"):
        check_rules(("tokens", "length"))
