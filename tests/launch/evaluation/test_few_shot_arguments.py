"""Options of few-shot tasks: data sets are not downloaded unless the user allows it."""

import argparse
import os

import pytest

from gpt.errors import ConfigError
from launch.commands.arguments.evaluate import add_arguments
from launch.evaluation.few_shot_arguments import few_shot_tasks

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_the_hugging_face_hub_is_offline_unless_the_user_allows_it(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    """The variable must be set before the libraries are imported, since they read it then."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "as it was")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match="--num-fewshot -1"):
        few_shot_tasks(parser.parse_args(["runs/none", "--tasks", "gpt3", "--num-fewshot=-1"]))
    assert os.environ["HF_HUB_OFFLINE"] == after


def test_a_number_of_examples_is_refused_where_no_task_would_show_them() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["runs/none", "--tasks", "none", "--truthful-qa", "q.jsonl", "--num-fewshot", "5"]
    with pytest.raises(ConfigError, match="--num-fewshot 5 is invalid without few-shot tasks"):
        few_shot_tasks(parser.parse_args(words))
