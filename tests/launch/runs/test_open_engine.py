"""An engine, the model in this process, and the same with packed weights give equal values."""

import argparse

import numpy as np
import pytest

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.moderation.classifier import Classifier
from gpt.moderation.config import ClassifierConfig
from gpt.post_training.sequence_scores import score_sequences
from launch.moderation.features import TextFeatures
from launch.moderation.open_run import classifier_objective
from launch.rewards.open_run import reward_objective
from launch.runs.open_engine import LocalScorer, PackedScorer, load_local_scorer, opened_engine, packed_for_scoring


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


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize(
    ("pool", "features"), [("last", False), ("mean", False), ("attention", False), ("last", True), ("mean", True)]
)
def test_a_packed_scorer_gives_the_values_of_its_module(head, attention, pool, features):
    """Tolerance 1e-5. Batches have different sizes, and the longest sequence is alone in one."""
    config = ModelConfig(vocab_size=500, n_ctx=64, n_layers=2, d_model=32, n_heads=4, positions="rope", init_std=0.2)
    classifier = Classifier(ClassifierConfig(head=head, pool=pool, attention=attention))
    objective = TextFeatures(classifier, 32) if features else classifier
    module = GPT(config, head=objective.head(config))
    initialise(module, config, seed=1)
    local = LocalScorer(module.eval().requires_grad_(False), objective)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(4, 500, size=n) for n in (1, 20, 7, 64, 64, 5, 33, 1)]
    wanted = score_sequences(local, sequences, row_tokens=64, rows_at_once=2)
    packed, done = packed_for_scoring(local), []
    assert isinstance(packed, PackedScorer)
    found = score_sequences(packed, sequences, row_tokens=64, rows_at_once=1, advance=done.append)
    assert wanted.shape == (8, 32 if features else classifier.n_categories)
    assert done == [3, 1, 1, 3]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
