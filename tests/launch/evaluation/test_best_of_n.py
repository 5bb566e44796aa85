"""The files of best-of-n hold no NaN; tests/launch/commands/judging/test_best_of_n.py runs the command."""

import json

import numpy as np

from gpt.post_training.analysis.best_of_n import ScoredSamples
from launch.comparison.prompts import ComparedPrompt
from launch.evaluation.best_of_n import best_lines, sample_lines
from launch.generation.jobs import PromptLine


def test_a_reward_that_is_not_known_is_null():
    prompts = [ComparedPrompt(text, PromptLine({})) for text in "pq"]
    proxy = np.array([[np.nan, 1.0], [np.nan, np.nan]])
    samples = ScoredSamples([["a", "b"], ["c", "d"]], proxy, np.array([[3.0, np.nan], [0.0, 0.0]]))
    best = best_lines(prompts, samples)
    assert best[0] == {"prompt": "p", "text": "b", "reward": 1.0, "gold": None}
    assert (best[1]["text"], best[1]["reward"]) == ("c", None)
    every = sample_lines(prompts, samples)
    assert [answer["score"] for answer in every[0]["completions"]] == [None, 1.0]
    json.dumps([best, every], allow_nan=False)
