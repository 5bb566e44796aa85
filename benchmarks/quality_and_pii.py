"""Scoring beside scikit-learn and masking beside datatrove, MB/s on one core, on the same texts in memory.

    python benchmarks/quality_and_pii.py [--json FILE] [--rounds N] [--text FILE ...]

Without files the texts are the sources of Python's library. scikit-learn: HashingVectorizer(2^18, str.split, counts)
and LogisticRegression.predict_proba; its hash has another seed, so speeds are compared here and decisions in the tests.
datatrove: its PIIFormatter, left out where datatrove is not installed. The last line printed is one JSON object.
"""

import argparse
import importlib.util
import statistics
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side

from data_prep.documents.shards import Document
from data_prep.filters.pii import PiiConfig, mask
from data_prep.filters.quality_classifier import N_BUCKETS, QualityModel, scorer
from data_prep.inputs.config import InputConfig
from data_prep.inputs.find import find_inputs
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError

CONTENDERS = {"score": ("triaxial score", "scikit-learn score"), "mask": ("triaxial mask", "datatrove mask")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", help="files of texts, such as JSON lines, instead of Python's library")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    return side_by_side.report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """Both comparisons; None as a contender's own process."""
    if args.rounds < 1:
        raise ConfigError(f"--rounds {args.rounds} must be at least 1")
    if args.serve is not None:
        side_by_side.serve(lambda: contender(args.serve, texts_of(args.text)))
        return None
    if args.json is not None:
        side_by_side.check_writable(args.json)
    texts = texts_of(args.text)
    n_bytes = sum(len(text.encode()) for text in texts)
    packages = {"score": "scikit-learn", "mask": "datatrove"}
    result: dict[str, Any] = {
        "benchmark": "quality_and_pii",
        "documents": len(texts),
        "bytes": n_bytes,
        "rounds": args.rounds,
        "machine": side_by_side.processor(),
    }
    for what, (ours, peer) in CONTENDERS.items():
        there = importlib.util.find_spec("sklearn" if what == "score" else "datatrove") is not None
        names = (ours, peer) if there else (ours,)
        commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
        answers = side_by_side.alternate(
            commands, rounds=args.rounds, threads=1, report=lambda text: print(text, flush=True)
        )
        cpu_s = {name: [answer[name]["cpu_s"] for answer in answers] for name in names}
        medians = {name: statistics.median(spans) for name, spans in cpu_s.items()}
        result[what] = {
            "mb_per_s": {name: n_bytes / 1e6 / median for name, median in medians.items()},
            "documents_per_s": {name: len(texts) / median for name, median in medians.items()},
            "cpu_ratios": side_by_side.speed_ratios(cpu_s, ours),
            "found": {name: answers[-1][name]["found"] for name in names},
            "peer": f"{packages[what]} {version(packages[what])}" if there else "not installed",
        }
        for name in names:
            print(f"{name:20}{result[what]['mb_per_s'][name]:>8.1f} MB/s  {answers[-1][name]['found']}")
    return result


def texts_of(patterns: list[str] | None) -> list[str]:
    """The texts of the files, or of Python's library."""
    if patterns is None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))
        return [
            path.read_text(encoding="utf-8", errors="replace") for path in files if "site-packages" not in str(path)
        ]
    config = InputConfig(tuple(patterns))
    files = (path for path in find_inputs(patterns) if isinstance(path, Path))
    records = (record for path in files for record in read_records(path, config))
    return [record.text for record in records if isinstance(record, Document)]


def contender(name: str, texts: list[str]) -> Callable[[], dict[str, Any]]:
    """One contender's block of work."""
    weights = np.random.default_rng(0).normal(scale=0.05, size=N_BUCKETS)
    if name == "triaxial score":
        score = scorer(QualityModel(weights, 0.0, {}))
        return lambda: {"found": {"above 0.5": sum(score(text) > 0.5 for text in texts)}}
    if name == "triaxial mask":
        return lambda: {"found": _masked(texts)}
    if name == "datatrove mask":
        return _datatrove(texts)
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    features = HashingVectorizer(n_features=N_BUCKETS, analyzer=str.split, norm=None, alternate_sign=False)
    model = LogisticRegression()
    model.coef_, model.intercept_, model.classes_ = weights[None], np.zeros(1), np.array([0, 1])
    return lambda: {
        "found": {"above 0.5": int((model.predict_proba(features.transform(texts))[:, 1] > 0.5).sum())},
    }


def _masked(texts: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        for kind, n in mask(text, PiiConfig(enabled=True))[1].items():
            found[kind] = found.get(kind, 0) + n
    return found


def _datatrove(texts: list[str]) -> Callable[[], dict[str, Any]]:
    from datatrove.pipeline.formatters.pii import PIIFormatter

    marks = ("\ue000", "\ue001")  # private characters, so that what was masked can be counted
    formatter = PIIFormatter(email_replacement=marks[0], ip_replacement=marks[1])

    def block() -> dict[str, Any]:
        done = [formatter.format(text) for text in texts]
        return {"found": {kind: sum(t.count(m) for t in done) for kind, m in zip(("email", "ip"), marks, strict=True)}}

    return block


if __name__ == "__main__":
    sys.exit(main())
