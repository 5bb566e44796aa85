"""An engine and the model in this process give equal values."""

import argparse

import numpy as np
import pytest

from gpt.post_training.sequence_scores import score_sequences
from launch.moderation.open_run import classifier_objective
from launch.rewards.open_run import reward_objective
from launch.runs.open_engine import load_local_scorer, opened_engine


@pytest.mark.parametrize(("objective_of", "width"), [(reward_objective, ()), (classifier_objective, (3,))])
def test_values_at_the_ends_of_sequences(objective_of, width, reward_run, classifier_run):
    """Tolerance 1e-6."""
    run = classifier_run.run if width else reward_run.run
    draw = np.random.default_rng(0)
    sequences = [draw.integers(4, 500, size=n) for n in (1, 20, 7, 64)]
    args = argparse.Namespace(run=run, step=None, device="cpu", dtype="float32", nproc=None, overrides=[])
    with opened_engine(args, objective_of) as opened:
        found = score_sequences(opened.engine, sequences, row_tokens=128, rows_at_once=2)
        config = opened.checkpoint.state["config"]
        local = load_local_scorer(
            opened.checkpoint,
            opened.model,
            objective_of(config, run),
            device=next(opened.engine.stages[0].parameters()).device,
            dtype=next(opened.engine.stages[0].parameters()).dtype,
        )
    assert found.shape == (4, *width)
    np.testing.assert_allclose(score_sequences(local, sequences, row_tokens=64, rows_at_once=1), found, atol=1e-6)
