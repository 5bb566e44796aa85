"""A classifier run is a filter of `triaxial prepare`: real workers, its scores, and a second run that does nothing."""

import json

import numpy as np
import pytest

from data_prep.documents.shards import read_shard
from gpt.errors import ConfigError
from launch.config.prepare_config import moderation_of, prepare_config
from launch.main import main
from launch.moderation.filter_stage import moderation_stage
from launch.moderation.open_run import load_classifier

RECIPE = """
[input]
paths = ["{texts}"]
[output]
folder = "{folder}/corpus"
validation_fraction = 0.2
[tokenizer]
vocab_size = 300
[language]
enabled = false
[quality]
rules = []
[dedup_minhash]
enabled = false
[moderation]
run = "{run}"
drop = {{ F = {limit} }}
"""


def test_documents_of_a_corpus_are_dropped_by_their_scores(classifier_run, tmp_path, capsys):
    texts = [json.loads(line) for line in (classifier_run.folder / "validation.jsonl").read_text().splitlines()]
    unique = {one["text"]: one["id"] for one in texts}
    scores = load_classifier(classifier_run.run).scores(list(unique))[:, 0]
    limit = float(np.median(scores)) + 1e-4
    wanted = [name for name, score in zip(unique.values(), scores, strict=True) if score < limit]
    recipe = tmp_path / "recipe.toml"
    source = classifier_run.folder / "validation.jsonl"
    recipe.write_text(RECIPE.format(texts=source, folder=tmp_path, run=classifier_run.run, limit=limit))
    assert main(["prepare", str(recipe), "--workers", "1"]) == 0
    shards = list((tmp_path / "corpus" / "work" / "moderation").glob("*[!d].jsonl.zst"))
    kept = [document for shard in shards if "dropped" not in shard.name for document in read_shard(shard)]
    assert len(kept) == len(wanted)
    by_text = dict(zip(unique, scores.tolist(), strict=True))
    for document in kept:
        assert document.metadata["moderation"]["F"] == pytest.approx(by_text[document.text], abs=2e-6)
    assert "apple" not in (tmp_path / "corpus" / "work" / "report.html").read_text()  # of dropped texts
    capsys.readouterr()
    assert main(["prepare", str(recipe), "--status"]) == 0
    assert "moderation" in capsys.readouterr().out
    assert main(["prepare", str(recipe), "--dropped"]) == 0
    assert "apple" not in capsys.readouterr().out


def test_unknown_categories_and_other_runs_are_refused_before_any_stage(classifier_run, reward_run, tmp_path):
    table = {"input": {"paths": ["x"]}, "output": {"folder": str(tmp_path)}, "tokenizer": {"vocab_size": 300}}
    config = prepare_config({**table, "moderation": {"run": str(classifier_run.run), "drop": {"X": 0.5}}})
    with pytest.raises(ConfigError, match=r"X is no category of .*; use one of F, F2, T"):
        moderation_of(config)
    with pytest.raises(ConfigError, match="is no classifier run"):
        moderation_of(prepare_config({**table, "moderation": {"run": str(reward_run.run)}}))
    assert moderation_stage(prepare_config(table).moderation) is None
