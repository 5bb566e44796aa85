"""What the tests of the report share: scores and labels made by rule, with hostile names."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt.moderation.taxonomy import read_taxonomy

HOSTILE = '</td><script>document.title="owned"</script><img src=x onerror="document.title=1"> &amp;'
N = 240
RATES = {"S": 0.2, "H": 0.15, "V": 0.1, "SH": 0.06, "HR": 0.1, "S3": 0.05, "H2": 0.05, "V2": 0.01}
PARENTS = {"S3": "S", "H2": "H", "V2": "V"}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class Made:
    """A folder with labels.jsonl, two score files, probes, and answers of two labellers."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.positive = {name: rng.random(N) < rate for name, rate in RATES.items()}
        for child, parent in PARENTS.items():
            self.positive[parent] |= self.positive[child]
        unknown = rng.random((N, len(RATES))) < 0.1
        self.labels = np.array([self.positive[name] for name in RATES], dtype=float).T
        self.labels[unknown] = np.nan
        self.scores = {name: self._scores(rng, shift) for name, shift in (("first", 0.5), ("second", 2.5))}
        write_lines(folder / "labels.jsonl", [
            {"id": f"t{i}", "text": f"Text {i}.", "labeller": "ana",
             "labels": {name: int(self.positive[name][i]) for j, name in enumerate(RATES) if not unknown[i, j]}}
            for i in range(N)
        ])  # fmt: skip
        for name, found in self.scores.items():
            rows = [
                {"id": f"t{i}", "scores": dict(zip(RATES, row.tolist(), strict=True))} for i, row in enumerate(found)
            ]
            write_lines(folder / f"{name}.jsonl", rows)
            (folder / f"{name}.summary.json").write_text(json.dumps(
                {"model": f"m-{name}", "taxonomy_digest": read_taxonomy(Path("moderation_openai")).digest}
            ))  # fmt: skip

    def _scores(self, rng, shift):
        columns = {name: rng.normal(size=N) + np.where(self.positive[name], shift, -1.5) for name in RATES}
        for child, parent in PARENTS.items():
            columns[parent] = np.maximum(columns[parent], columns[child])
        return np.array([1 / (1 + np.exp(-column)) for column in columns.values()]).T

    def probes(self, name, *, model="", functions=("one_h", HOSTILE), words=("tall", HOSTILE)):
        results = [
            {"function": function, "target": target, "cases": 10, "right": 9 - i - 3 * k}
            for i, function in enumerate(functions)
            for k, target in enumerate(("cats", HOSTILE))
        ]
        gaps = [{"word": word, "gap": 0.1 - 0.3 * i, "sentences": 4} for i, word in enumerate(words)]
        effects = [
            {"category": "H", "name": HOSTILE, "texts": 9, "flagged_before": 8, "still_flagged": 6, "mean_change": -0.1}
        ]
        auprc = {"estimate": None, "low": None, "high": None}
        path = self.folder / name
        path.write_text(json.dumps({
            "model": model,
            "functional": [{"suite": HOSTILE, "category": "H", "results": results}],
            "counterfactuals": [{"category": "H", "sentences": 8, "mean_range": 0.2, "worst_range": 0.4,
                                 "false_positive_share": None, "auroc": 0.8, "words": gaps}],
            "perturbations": effects,
            "slices": [{"field": "language", "value": HOSTILE, "texts": 9,
                        "measures": [{"category": "H", "positives": 0, "auprc": auprc}]}],
            "reduction": {HOSTILE: {"reduced": 3, "median_characters_before": 70, "median_characters_after": 9.5},
                          "V": {"reduced": 0}},
        }))  # fmt: skip
        return path


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def openai():
    return read_taxonomy(Path("moderation_openai"))


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture(scope="session")
def lines_to():
    return write_lines
