"""The public labelled texts that the benchmarks of moderation share, and their files of features (numpy alone).

A file of features (moderation_features.py) has the arrays `samples` and `tweets`, each (texts, layers, pools, d), and
`labels`, `hateful`, `layers`, `pools`, and `rows` of the tweets in their file. No text is printed.
"""

import csv
import gzip
import json
from pathlib import Path

import numpy as np

SAMPLES, TWEETS = "openai-samples-1680-s3-text-removed.jsonl.gz", "davidson-labeled_data.csv.gz"
CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


def samples(folder: Path) -> tuple[list[str], np.ndarray]:
    """The texts of samples-1680 that are there, and their labels (n, 8): 1, 0, NaN where unknown."""
    with gzip.open(folder / SAMPLES, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row.get("prompt")]
    labels = [[np.nan if row.get(category) is None else row[category] for category in CATEGORIES] for row in rows]
    return [row["prompt"] for row in rows], np.array(labels, dtype=np.float64)


def tweets(folder: Path, n: int | None = None, *, keep_hate: bool = False) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Davidson's tweets in the file's order, or `n` of them drawn by seed 0; whether most annotators found each
    hateful (n,); and their rows in the file (n,). `keep_hate`: all hateful ones are among the `n`."""
    with gzip.open(folder / TWEETS, "rt", encoding="utf-8") as lines:
        found = [*csv.DictReader(lines)]
    hateful = np.array([row["class"] == "0" for row in found])
    chosen = np.arange(len(found)) if n is None else np.random.default_rng(0).permutation(len(found))
    if keep_hate:
        chosen = chosen[np.argsort(~hateful[chosen], kind="stable")]
    chosen = chosen[:n]
    return [found[i]["tweet"] for i in chosen], hateful[chosen].astype(np.float64), chosen


def features(path: Path, part: str, layers: list[int] | None = None, pools: list[str] | None = None) -> np.ndarray:
    """(n, layers * pools * d) of `part`, "samples" or "tweets"; by default of all layers and pools in the file."""
    with np.load(path) as file:
        found, there, how = file[part], file["layers"].tolist(), file["pools"].tolist()
    found = found[:, [there.index(one) for one in layers or there]]
    found = found[:, :, [how.index(one) for one in pools or how]]
    return found.reshape(len(found), -1)
