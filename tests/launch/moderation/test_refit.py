"""Heads that are fitted to labelled texts take the place of the run's, and give the scores of their formula."""

import json

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.moderation.frozen.leave_one_out import choose_l2
from gpt.moderation.heads import constrained
from gpt.moderation.labels import label_matrix
from launch.main import main
from launch.moderation.loop.joined import labelled_texts
from launch.moderation.open_run import load_classifier
from launch.moderation.refit import fit_to_texts


def test_fitted_heads_are_published_and_score_texts(classifier_runs, tiny_corpus, tmp_path, capsys):
    words = ["--objective.head", "linear", "--objective.pool", "mean", "--train.total_steps", "4"]
    words += ["--train.evaluate_every_steps", "4"]
    made = classifier_runs.make_classifier_run(tiny_corpus, tmp_path, *words)
    before = load_classifier(made.run, device="cpu")
    opened = load_classifier(made.run, device="cpu", features=True)
    texts = labelled_texts([made.folder / "train.jsonl"], opened.taxonomy)
    fitted, _ = fit_to_texts(opened, texts, l2=3.0)
    command = ["moderate", "heads", str(made.run), "--labels", str(made.folder / "train.jsonl"), "--l2", "3"]
    assert main([*command, "--device", "cpu"]) == 0
    assert f"fitted the heads to {len(texts)} texts in" in capsys.readouterr().out
    after = load_classifier(made.run, device="cpu")
    held = [one.text for one in labelled_texts([made.folder / "validation.jsonl"], opened.taxonomy)]
    logits = torch.from_numpy(fitted.logits(opened.features(held)))
    expected = torch.sigmoid(constrained(logits, opened.taxonomy.parents)).numpy()
    assert np.abs(after.scores(held) - expected).max() < 1e-5
    assert np.abs(before.scores(held) - expected).max() > 0.05
    assert after.version != before.version
    assert after.run.checkpoint.state["fitted_heads"]["l2"] == dict.fromkeys(opened.categories, 3.0)
    events = [json.loads(line) for line in (made.run / "events.jsonl").read_text().splitlines()]
    assert [event["texts"] for event in events if event["kind"] == "heads_fitted"] == [len(texts)]
    features = opened.features([one.text for one in texts])
    chosen = choose_l2(features, label_matrix(texts, opened.taxonomy), opened.categories)
    assert main([*command[:-1], "auto", "--device", "cpu"]) == 0
    shown = ", ".join(f"{one} {penalty:g}" for one, penalty in chosen.items())
    assert f"chosen l2: {shown}\n" in capsys.readouterr().out
    assert load_classifier(made.run, device="cpu").run.checkpoint.state["fitted_heads"]["l2"] == chosen
    with pytest.raises(ConfigError, match="l2 = 0 is invalid"):  # before any feature is computed
        fit_to_texts(before, texts, l2=0.0)
