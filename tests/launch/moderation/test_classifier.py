"""A classifier run scores texts as its module does alone."""

import json

import numpy as np
import pytest
import torch

from gpt.moderation.heads import constrained
from launch.moderation.classifier import version_of
from launch.moderation.decisions import Decisions
from launch.moderation.open_run import load_classifier


@pytest.fixture(scope="module")
def texts(classifier_run):
    lines = (classifier_run.folder / "validation.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def reference(classifier, ids):
    """Probabilities (c,) of one window of tokens, by a forward pass in float64 with nothing else in the row."""
    module = classifier.run.engine.module.double()
    with torch.inference_mode():
        logits = module(torch.tensor([ids]))[0, -1, : len(classifier.categories)]
        found = torch.sigmoid(constrained(logits, classifier.taxonomy.parents)).numpy()
    module.float()
    return found


def test_scores_equal_those_of_each_text_alone_in_float64(classifier_run, texts):
    """Tolerance 2e-6: fp32 against float64."""
    classifier = load_classifier(classifier_run.run)
    end = classifier.run.tokenizer.end_of_document_id
    wanted = [reference(classifier, [*classifier.run.tokenizer.encode(text), end]) for text in texts[:20]]
    np.testing.assert_allclose(classifier.scores(texts[:20]), wanted, atol=2e-6)
    assert classifier.scores([]).shape == (0, 3)
    assert classifier.scores(["", "\0", "\ud800"]).shape == (3, 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.03)])
def test_packed_weights_give_the_same_scores(classifier_run, texts, dtype, tolerance):
    packed = load_classifier(classifier_run.run, dtype=dtype, packs=True)
    np.testing.assert_allclose(packed.scores(texts), load_classifier(classifier_run.run).scores(texts), atol=tolerance)


def test_a_long_text_has_the_largest_scores_of_its_windows(classifier_run, texts):
    classifier = load_classifier(classifier_run.run, window=16)
    text, end = " ".join(texts[:6]), classifier.run.tokenizer.end_of_document_id
    ids = classifier.run.tokenizer.encode(text)
    starts = [*range(0, len(ids) - 15, 12), len(ids) - 15]  # 15 tokens a window, which overlap by a quarter: 3
    wanted = np.max([reference(classifier, [*ids[start : start + 15], end]) for start in starts], axis=0)
    np.testing.assert_allclose(classifier.scores([text])[0], wanted, atol=2e-6)
    assert classifier.n_windows(classifier.encoded([text, "short"])) == [len(starts), 1]


def test_features_are_the_hidden_states_before_the_head(classifier_run, texts):
    """The head on the features gives the scores. Tolerance 2e-6."""
    classifier = load_classifier(classifier_run.run)
    features = load_classifier(classifier_run.run, features=True).features(texts[:10])
    assert features.dtype == np.float32
    with torch.inference_mode():
        logits = classifier.run.engine.module.head(torch.from_numpy(features)[:, None])[:, 0]
        found = torch.sigmoid(constrained(logits[:, :3], classifier.taxonomy.parents)).numpy()
    np.testing.assert_allclose(found, classifier.scores(texts[:10]), atol=2e-6)


def test_the_version_names_all_that_decides_a_score(classifier_run):
    found = load_classifier(classifier_run.run)
    assert found.version.startswith("fruit-1-step-40-")
    assert version_of(found.run.checkpoint, found.taxonomy, Decisions()) == found.version
    assert version_of(found.run.checkpoint, found.taxonomy, Decisions(digest="other")) != found.version
