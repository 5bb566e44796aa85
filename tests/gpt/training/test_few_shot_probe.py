"""The few-shot probe: which settings make one, what it refuses, and what is logged of its scores.

tests/launch/evaluation/test_on_ranks.py compares its scores with those of `triaxial evaluate`.
"""

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.scores import TaskScore
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.few_shot_probe import few_shot_records, few_shot_values, make_few_shot_probe

ADD = "gpt3_two_digit_addition"


def test_no_setting_makes_no_probe(tokenizer: Tokenizer) -> None:
    assert make_few_shot_probe(TrainConfig(total_tokens=100), tokenizer, n_ctx=8) is None


def test_errors_name_the_settings_of_the_recipe(tokenizer: Tokenizer) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    config = TrainConfig(total_tokens=100, few_shot_every_tokens=10, few_shot_tasks=(ADD,), few_shot_examples=(0,))
    probe = make_few_shot_probe(config, tokenizer, n_ctx=96)
    assert probe is not None
    assert list(probe.tasks.generated) == [f"{ADD}/0"]
    with pytest.raises(ConfigError, match=f"train.few_shot_tasks {ADD}/0: a task asks for 8 new tokens"):
        make_few_shot_probe(config, tokenizer, n_ctx=8)


def test_values_name_the_metric_only_where_a_task_has_several() -> None:
    scores = [
        TaskScore("sums", "2D+", 0, "exact_match", 0.25, None, 4, 0),
        TaskScore("choices", "choices", 5, "acc", 0.5, 0.1, 4, 0),
        TaskScore("choices", "choices", 5, "acc_norm", 0.75, 0.1, 4, 1),
    ]
    assert few_shot_values(scores) == {
        "few_shot/sums/0": 0.25,
        "few_shot/choices/5/acc": 0.5,
        "few_shot/choices/5/acc_norm": 0.75,
    }
    records = few_shot_records(scores, step=3, tokens=4096)
    assert [(r["step"], r["tokens_seen"], r["task"], r["value"]) for r in records] == [
        (3, 4096, "sums", 0.25),
        (3, 4096, "choices", 0.5),
        (3, 4096, "choices", 0.75),
    ]
