"""The trained classifier separates real kinds of text, and its report is right."""

import argparse
import inspect
import json
import random
import re
import statistics
import textwrap
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from quality_samples import documents, sample

from data_prep.documents.records import Page
from data_prep.documents.shards import Document, keyed_hash
from data_prep.extraction.page_text import ExtractConfig, page_text
from data_prep.filters.quality_classifier import load_model, scorer
from data_prep.inputs.config import InputConfig
from data_prep.quality_training.sample import SampleConfig
from data_prep.quality_training.train import FitConfig, FitTask, evaluate_scores, fit_model, row_weights
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError

pytest.importorskip("mmh3", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


SHARED = Path(__file__).parents[4] / "shared/data"


def train(folder: Path, corpora, **settings):
    """Return (the report, the model's scorer)."""
    inputs = sample(folder, corpora, 2, SampleConfig(0, 10_000))
    result = fit_model(FitTask(FitConfig(**settings), SampleConfig(0, 10_000)), inputs, (folder / "model",))
    model = load_model(folder / "model")
    assert {key: model.about[key] for key in result.facts} == json.loads(json.dumps(result.facts))
    return result.facts, scorer(model)


def test_python_prose_is_separated_from_python_code(tmp_path):
    """Pieces of Python's language reference against pieces of its library's code; both come with Python."""
    prose = [piece for text in topics.values() for piece in textwrap.wrap(text, 1500) if len(piece) > 500][:150]
    modules = (argparse, inspect, random, statistics, textwrap, zipfile)
    code = [piece for module in modules for piece in pieces(inspect.getsource(module), 1500)][:150]
    report, score = train(tmp_path / "a", (documents("code", code), documents("prose", prose)), held_out=0.3)
    held = report["held_out"]
    assert held["precision"] > 0.8
    assert held["recall"] > 0.8
    assert held["positive"]["kept_by_pareto"] > 5 * held["negative"]["kept_by_pareto"]
    assert report["fit"]["converged"]
    n = sum(report["data"][kind]["held_out"] for kind in ("positive", "negative"))
    assert 0.2 * 300 < n < 0.4 * 300
    assert len(code) == len(prose) == 150
    assert score(inspect.getsource(json.decoder)) < 0.5


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text) - size, size)]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_articles_are_separated_from_web_pages(tmp_path):
    """Encyclopaedia articles and speeches against the whole text of crawled pages."""
    text = (SHARED / "text/wikitext2-valid.txt").read_text()
    good = [part for part in re.split(r"\n (?== [^=]+ =\n)", text) if len(part) > 500]
    with zipfile.ZipFile(SHARED / "text/nltk-inaugural.zip") as archive:
        good += [archive.read(name).decode("latin-1")[:8000] for name in archive.namelist() if name.endswith(".txt")]
    pages = []
    for path in sorted((SHARED / "warc").glob("*.warc.gz")):
        for record in read_records(path, InputConfig(paths=("-",))):
            if isinstance(record, Page):
                whole = page_text(record.content, record.charset, record.is_html, ExtractConfig(main_content=False))
                pages += [whole[:8000]] if whole.strip() else []
    assert min(len(good), len(pages)) > 50
    report, _ = train(tmp_path / "a", (documents("page", pages), documents("good", good)), held_out=0.4)
    held = report["held_out"]
    assert held["f1"] > 0.9
    assert held["negative"]["kept_by_pareto"] < 0.2 < 0.8 < held["positive"]["kept_by_pareto"]


def test_held_out_documents_do_not_affect_the_weights(tmp_path, prose):
    """With the texts of the held-out documents changed, the weights stay the same."""
    good, bad = (
        documents(kind, [f"{word} {prose(s, 2)}" for s in range(20)]) for kind, word in (("p", "x"), ("n", "y"))
    )
    held = {d.id for d in good + bad if keyed_hash(d.id, key="held out 0") < 0.3 * 2**64}
    assert 4 < len(held) < 20
    weights = []
    for trial in ("as they are", "exchanged"):
        corpora = [
            [Document(d.id, d.text[::-1] if d.id in held and trial != "as they are" else d.text) for d in corpus]
            for corpus in (bad, good)
        ]
        report, _ = train(tmp_path / trial, corpora, held_out=0.3)
        weights.append(load_model(tmp_path / trial / "model").weights)
        assert sum(report["data"][kind]["held_out"] for kind in ("positive", "negative")) == len(held)
    assert np.array_equal(*weights)
    with pytest.raises(ConfigError, match="--positive: 0 different documents to train on; at least 2 are needed"):
        train(tmp_path / "none", (bad, []))


def test_the_report_evaluates_scores_and_weights():
    scores, positive = np.array([0.9, 0.6, 0.4, 0.8, 0.1, 0.0]), np.array([True, True, True, False, False, False])
    report = evaluate_scores(scores, positive, alpha=9.0)
    assert (report["precision"], report["recall"], report["f1"]) == (pytest.approx(2 / 3, abs=1e-6),) * 3
    assert report["negative"]["kept_by_pareto"] == pytest.approx((1.2**-9 + 1.9**-9 + 2.0**-9) / 3, abs=1e-6)
    assert report["negative"]["kept_at_half"] == pytest.approx(1 / 3, abs=1e-6)
    assert sum(report["positive"]["scores"]) == 3
    empty = evaluate_scores(scores[:0], positive[:0], alpha=9.0)
    assert (empty["precision"], empty["recall"], empty["f1"], empty["positive"]["kept_by_pareto"]) == (None,) * 4
    held = np.array([False, True, False, False, False, False])
    equal = row_weights(positive, held, "equal")
    assert equal.sum() == pytest.approx(1)
    assert (equal[positive].sum(), equal[1]) == (pytest.approx(0.5), 0)
    assert row_weights(positive, held, "as-is").tolist() == pytest.approx([0.2, 0, 0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"l2": -1.0}, r"--l2 -1\.0 is invalid: must be at least 0"),
        ({"max_iterations": 0}, "--max-iterations 0 is invalid: must be at least 1"),
        ({"held_out": 1.0}, r"--held-out 1\.0 is invalid: must be at least 0 and below 1"),
        ({"alpha": -9.0}, r"--alpha -9\.0 is invalid: must be above 0"),
    ],
)
def test_invalid_settings_are_errors(setting, message):
    with pytest.raises(ConfigError, match=message):
        FitConfig(**setting)
