"""GPT-3's keep rule has the right distribution and does not depend on order or sharding."""

import random

import numpy as np
import pytest

from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import read_trace
from data_prep.filters.pareto import ClassifyConfig, KeepRule, classify_shard, keep_probability
from data_prep.filters.quality_classifier import N_BUCKETS, QualityModel, save_model, scorer, word_buckets
from gpt.errors import ConfigError

pytest.importorskip("mmh3", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

SCORES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
N_IDS = 20_000


def test_the_keep_rate_is_that_of_the_lomax_distribution():
    """Per score: within 3 sigma of (2 - s)^-9 and of numpy's own draws. A classical Pareto, from 1 on, keeps all."""
    draws = np.random.default_rng(0).pareto(9, size=400_000)
    ids = [f"<urn:uuid:{number:032x}>" for number in range(N_IDS)]
    for score in SCORES:
        p = (2 - score) ** -9
        assert keep_probability(score, 9.0) == pytest.approx(p, rel=1e-15)
        rate = sum(KeepRule().reason(name, score) is None for name in ids) / N_IDS
        sigma = np.sqrt(p * (1 - p) / N_IDS)
        assert abs(rate - p) <= 3 * sigma
        assert abs(rate - np.mean(draws > 1 - score)) <= 3 * np.hypot(sigma, np.sqrt(p * (1 - p) / len(draws)))
        classical = np.mean(draws + 1 > 1 - score)  # x >= 1, a common misreading of numpy's pareto
        assert classical == 1
        assert score == 1 or abs(classical - p) > 3 * sigma
    assert rate == 1, "a score of 1 is never dropped"


def test_seeds_give_independent_draws():
    ids = [str(number) for number in range(5000)]
    kept = {seed: {name for name in ids if KeepRule(seed=seed, alpha=2.0).reason(name, 0.5) is None} for seed in (0, 1)}
    p = 1.5**-2
    for names in kept.values():
        assert abs(len(names) / 5000 - p) < 3 * np.sqrt(p * (1 - p) / 5000)
    both = p * p
    assert abs(len(kept[0] & kept[1]) / 5000 - both) < 3 * np.sqrt(both * (1 - both) / 5000), "independent draws"


def test_threshold_and_all_do_not_draw():
    assert [KeepRule("threshold", threshold=0.7).reason("x", s) for s in (0.69, 0.7, 1.0)] == ["low_score", None, None]
    assert [KeepRule("all").reason(str(n), 0.0) for n in range(100)] == [None] * 100


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": 0.0}, r"classify\.alpha = 0\.0 is invalid: must be above 0"),
        ({"threshold": 1.5}, r"classify\.threshold = 1\.5 is invalid: must be between 0 and 1"),
    ],
)
def test_invalid_settings_are_errors(setting, message):
    with pytest.raises(ConfigError, match=message):
        ClassifyConfig(**setting)


def test_every_order_and_sharding_keeps_the_same_documents(tmp_path, prose):
    weights = np.zeros(N_BUCKETS)
    weights[next(word_buckets("miller sailor harbour"))] = (2.0, -2.0, 1.0)
    model = QualityModel(weights, 1.0, {})
    save_model(model, tmp_path / "model")
    documents = [Document(f"d{seed}", prose(seed, 4), {"url": str(seed)}) for seed in range(300)]
    expected = {d.id for d in documents if KeepRule(alpha=2.0).reason(d.id, scorer(model)(d.text)) is None}
    assert 30 < len(expected) < 270
    for trial, n_shards in enumerate((1, 3)):
        random.Random(trial).shuffle(documents)
        kept, dropped, before, after = {}, {}, 0, 0
        for number in range(n_shards):
            paths = [tmp_path / f"{trial}-{number}.{ending}" for ending in ("in", "out", "trace")]
            with write_shard(paths[0]) as write:
                for document in documents[number::n_shards]:
                    write(document)
            result = classify_shard(KeepRule(alpha=2.0), (paths[0], tmp_path / "model"), (paths[1], paths[2]))
            kept |= {document.id: document for document in read_shard(paths[1])}
            dropped |= {drop.id: drop for drop in read_trace(paths[2])}
            (counts,) = result.counts
            assert counts.dropped == {"not_drawn": counts.documents_in - counts.documents_out}
            before += sum(result.facts["scores"].values())
            after += sum(result.facts["scores_kept"].values())
        assert set(kept) == expected
        assert set(dropped) == {d.id for d in documents} - expected
        assert (before, after) == (300, len(expected))
        for document in documents:
            score = scorer(model)(document.text)
            if document.id in kept:
                assert kept[document.id].metadata == {**document.metadata, "quality_score": score}
                assert kept[document.id].text == document.text
            else:
                assert dropped[document.id].detail == f"score {score}"
