"""Scores over clean and dirty items, and overlap analyses that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.clean_subset import read_overlap
from gpt.evaluation.few_shot.scores import few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

ADD, LETTERS = "gpt3_two_digit_addition", "gpt3_cycle_letters_in_word"
LogLikelihood = Callable[[GPT, Tokenizer, str, str], tuple[float, bool, int]]
WriteOverlap = Callable[[Path, dict[str, list[bool]]], Path]


def test_clean_subset_of_published_problems(
    published: Path,
    model: GPT,
    tokenizer: Tokenizer,
    tmp_path: Path,
    options: Callable[..., FewShotOptions],
    log_likelihood: LogLikelihood,
    write_overlap: WriteOverlap,
) -> None:
    file = write_overlap(tmp_path / "examples.jsonl", {ADD: [i % 3 == 0 for i in range(30)]})
    asked = options(ADD, LETTERS, limit=20, gpt3_data=published, clean_subset=file, answers="likelihood")
    tasks = open_tasks(asked)
    scores = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    by_name = {(score.task, score.metric): score for score in scores}
    split, other = by_name[ADD, "log_likelihood"], by_name[LETTERS, "log_likelihood"]
    plain = [log_likelihood(model, tokenizer, *i.args)[0] for i in tasks.generated[f"{ADD}/0"].instances]
    assert (split.clean_items, split.dirty_items) == (13, 7)
    assert split.dirty_value == pytest.approx(sum(plain[::3]) / 7, abs=1e-4)
    assert split.clean_value == pytest.approx((sum(plain) - sum(plain[::3])) / 13, abs=1e-4)
    assert (other.clean_items, other.clean_value) == (None, None)


def test_a_subset_without_items_has_no_score(
    published: Path,
    model: GPT,
    tokenizer: Tokenizer,
    tmp_path: Path,
    options: Callable[..., FewShotOptions],
    write_overlap: WriteOverlap,
) -> None:
    file = write_overlap(tmp_path / "examples.jsonl", {ADD: [False] * 30})
    (score,) = few_shot_scores(
        model, tokenizer, open_tasks(options(ADD, limit=3, gpt3_data=published, clean_subset=file)), n_ctx=96
    )
    assert (score.clean_items, score.dirty_items, score.dirty_value) == (3, 0, None)
    assert score.clean_value == score.value


def test_an_overlap_analysis_of_other_items_is_refused(
    published: Path,
    model: GPT,
    tokenizer: Tokenizer,
    tmp_path: Path,
    options: Callable[..., FewShotOptions],
    write_overlap: WriteOverlap,
) -> None:
    short = write_overlap(tmp_path / "short.jsonl", {ADD: [False] * 29})
    tasks = open_tasks(options(ADD, limit=3, gpt3_data=published, clean_subset=short))
    with pytest.raises(ConfigError, match="has 29 examples, but the task has 30 items"):
        few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    with pytest.raises(ConfigError, match=r"Add --gpt3-data DIR"):
        open_tasks(options(ADD, clean_subset=short))
    other = write_overlap(tmp_path / "other.jsonl", {"sum of digits": [False]})
    with pytest.raises(ConfigError, match="has 'sum of digits', and no task has such a name"):
        open_tasks(options(ADD, gpt3_data=published, clean_subset=other))
    rows = short.read_text().splitlines()
    (tmp_path / "gap.jsonl").write_text("\n".join(rows[:3] + rows[4:]))
    with pytest.raises(ConfigError, match="is incomplete"):
        read_overlap(tmp_path / "gap.jsonl", [ADD])
    (tmp_path / "wrong.jsonl").write_text('{"set": "x", "index": "0", "dirty": true}\n')
    with pytest.raises(ConfigError, match=r"wrong.jsonl line 1 is not a line of an examples.jsonl"):
        read_overlap(tmp_path / "wrong.jsonl", ["x"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_overlap(tmp_path / "absent", ["x"])
