"""A classifier learns a rule from labelled texts, and the run alone holds all that a user of it needs."""

import json
import shutil

import pytest

from launch.config.run_config import from_dict
from launch.main import main


def values_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.startswith("validation/")} for line in lines]


def test_it_learns_the_rule_and_shows_each_category(classifier_run):
    first, *_, last = [values for values in values_of(classifier_run.run) if values]
    assert {key.removeprefix("validation/validation/") for key in last if "loss" in key or "violations" in key} == {
        "loss",
        "loss_F",
        "loss_F2",
        "loss_T",
        "violations",
    }
    assert last["validation/validation/loss"] < 0.35 < 0.65, (first, last)
    assert 0 <= last["validation/validation/violations"] <= 1


def test_the_run_holds_its_taxonomy(classifier_run, tmp_path):
    (path,) = sorted((classifier_run.run / "checkpoints").glob("step-*"))[-1:]
    states = [json.loads(file.read_text()) for file in path.glob("*.json")]
    (config,) = [state["config"] for state in states if isinstance(state, dict) and "config" in state]
    config["objective"]["taxonomy"] = str(tmp_path / "gone.toml")
    assert from_dict(config).objective.read.ids == ("F", "F2", "T")


def test_wdat_trains_with_a_target_corpus_and_clips_its_critic(classifier_run, tmp_path):
    from safetensors.numpy import load_file

    for name in ("recipe.toml", "fruit.toml"):
        shutil.copy(classifier_run.folder / name, tmp_path)
    folder = classifier_run.folder
    source = f'{{ path = "{folder}/train", streams = {{ labels = "{folder}/train_labels" }} }}'
    target = f'{{ path = "{folder}/validation", name = "target" }}'
    words = ["--data.train", f"[{source}, {target}]", "--objective.adversarial_weight", "0.01"]
    words += ["--run.directory", str(tmp_path / "run"), "--train.total_steps", "4", "--train.evaluate_every_steps", "4"]
    assert main(["train", str(tmp_path / "recipe.toml"), *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = [line["distance"] for line in lines if "distance" in line]
    assert len(distances) == 4
    assert any(distances)
    (path,) = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1:]
    weights = {}
    for file in path.glob("*.safetensors"):
        weights |= load_file(file)
    critic = {name: w for name, w in weights.items() if name.startswith("model.head.critic.")}
    assert len(critic) == 6
    assert max(abs(w).max() for w in critic.values()) <= 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sampling", "window"], "data.sampling = 'window' is invalid for a classifier"),
        (["--data.seq_len", "8", "--batch.global_batch_tokens", "32"], "data.seq_len = 8 is invalid: in corpus 'tra"),
        (["--objective.adversarial_weight", "0.01"], "is invalid: no text of data.train is without labels, the target"),
        (["--objective.class_weights", "{ G = 2.0 }"], "objective.class_weights.G is invalid: taxonomy 'fruit 1'"),
    ],
)
def test_what_does_not_fit_ends_with_one_line(classifier_run, words, message, tmp_path, capsys):
    command = ["train", str(classifier_run.folder / "recipe.toml"), "--run.directory", str(tmp_path / "run"), *words]
    assert main(command) != 0
    assert message in capsys.readouterr().err
