"""Recall and precision of the fuzzy de-duplication against exact Jaccard similarity, on planted near-copies.

Every text of a part of them gets one copy with a share of its words edited; the whole pipeline runs over all of them
at once. The similarities are computed here, from sets of words and of tuples of words, not by the code under test.
"""

import json
import math
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_prep.dedup.fuzzy import FuzzyConfig, find_near_copies
from data_prep.documents.shards import Document, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace

RATES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
MOST_TEXTS_A_RATE = 150
BINS = 20
# What counts as similar where no threshold is set: the similarity at which the curve is steepest.
METHODS = {
    "banded": (FuzzyConfig(), (1 / 14) ** (1 / 8)),
    "banded, min_jaccard 0.7": (FuzzyConfig(min_jaccard=0.7), 0.7),
    "gpt3": (FuzzyConfig(method="gpt3"), 0.8),
}


@dataclass(frozen=True)
class Pair:
    """A planted pair: numbers of the two texts, and the share of words that was edited."""

    a: int
    b: int
    rate: float


def measure_curve(texts: Sequence[str], *, seed: int, plot: Path | None) -> dict[str, Any]:
    """A table a method; with `plot`, one picture of all."""
    planted, pairs = plant(texts, seed=seed)
    print(f"{len(planted):,} texts, {len(pairs):,} of them an edited copy of another")
    results = {}
    for name, (config, threshold) in METHODS.items():
        sets = [grams(text, config) for text in planted]
        cluster = run_pipeline(planted, config)
        result = compare(pairs, sets, cluster, config=config, threshold=threshold)
        print_table(name, result)
        results[name] = result
    if plot is not None:
        draw(results, plot)
        print(f"drawn: {plot}")
    return {"texts": len(planted), "pairs": len(pairs), "methods": results}


def plant(texts: Sequence[str], *, seed: int) -> tuple[list[str], list[Pair]]:
    """Texts and, for each, an edited copy: of the edited words 60% are exchanged, 20% left out, 20% followed by one."""
    n = min(MOST_TEXTS_A_RATE, len(texts) // len(RATES))
    rng = random.Random(seed)
    other_words = " ".join(texts[:200]).split()
    planted, pairs = [], []
    for i, text in enumerate(texts[: n * len(RATES)]):
        rate = RATES[i // n]
        words = []
        for word in text.split(" "):
            kind = rng.random() if rng.random() < rate else 1.0
            words += [word] if kind == 1.0 else []
            words += [rng.choice(other_words)] if kind < 0.6 else []
            words += [word, rng.choice(other_words)] if 0.8 <= kind < 1.0 else []
        pairs.append(Pair(len(planted), len(planted) + 1, rate))
        planted += [text, " ".join(words)]
    return planted, pairs


def grams(text: str, config: FuzzyConfig) -> set[Any]:
    """The set that similarity is defined by."""
    words = text.lower().split() if config.tokens == "whitespace" else re.findall(r"\w+", text.lower())
    n = config.ngram_words or 1
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def run_pipeline(texts: Sequence[str], config: FuzzyConfig) -> list[int]:
    """For each text the number of the one that stays of its cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with write_shard(folder / "shard.jsonl.zst") as write:
            for number, text in enumerate(texts):
                write(Document(str(number), text))
        with Workspace(folder / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
            lists = find_near_copies(ShardRun(workspace), config, {"shard": folder / "shard.jsonl.zst"})
        cluster = list(range(len(texts)))
        for line in lists["shard"].read_text().splitlines():
            row, kept, _ = json.loads(line)
            cluster[row] = int(kept)
    return cluster


def compare(
    pairs: Sequence[Pair], sets: Sequence[set[Any]], cluster: Sequence[int], *, config: FuzzyConfig, threshold: float
) -> dict[str, Any]:
    """By edit rate, by similarity, and over all pairs of texts, planted or not."""
    setting = config.setting
    similarity = np.array([jaccard(sets[p.a], sets[p.b]) for p in pairs])
    found = np.array([cluster[p.a] == cluster[p.b] for p in pairs])
    theory = 1 - (1 - similarity**setting.rows) ** setting.bands
    theory[similarity < setting.min_jaccard] = 0
    rates = np.array([p.rate for p in pairs])
    similar = {pair for pair, value in all_similar(sets, min(threshold, 0.5)).items() if value >= threshold}
    members = defaultdict(list)
    for number, kept in enumerate(cluster):
        members[kept].append(number)
    joined = {(a, b) for group in members.values() for i, a in enumerate(group) for b in group[i + 1 :]}
    return {
        "threshold": threshold,
        "similar_pairs": len(similar),
        "joined_pairs": len(joined),
        "recall": len(similar & joined) / max(len(similar), 1),
        "precision": len(similar & joined) / max(len(joined), 1),
        "least_similar_joined": min((jaccard(sets[a], sets[b]) for a, b in joined), default=None),
        "by_rate": [row(rate, rates == rate, similarity, found=found, theory=theory) for rate in RATES],
        "by_similarity": [
            row(
                (i + 0.5) / BINS,
                np.minimum((similarity * BINS).astype(int), BINS - 1) == i,
                similarity,
                found=found,
                theory=theory,
            )
            for i in range(BINS)
        ],
    }


def row(at: float, mine: Any, similarity: Any, *, found: Any, theory: Any) -> dict[str, Any]:
    """Shares of some of the planted pairs; `sigmas`: how far what was found lies from the theory."""
    n = int(mine.sum())
    if not n:
        return {"at": at, "pairs": 0}
    spread = math.sqrt(float((theory[mine] * (1 - theory[mine])).sum()))
    excess = float(found[mine].sum() - theory[mine].sum())
    return {
        "at": at,
        "pairs": n,
        "similarity": float(similarity[mine].mean()),
        "theory": float(theory[mine].mean()),
        "found": float(found[mine].mean()),
        "sigmas": excess / spread if spread > 1e-3 else 0.0,
    }


def all_similar(sets: Sequence[set[Any]], least: float) -> dict[tuple[int, int], float]:
    """Every pair of sets with at least that Jaccard similarity, by counting what each shares with all before it."""
    holders: dict[Any, list[int]] = defaultdict(list)
    sizes = np.array([len(s) for s in sets])
    pairs = {}
    for b, members in enumerate(sets):
        shared = np.zeros(b, dtype=np.int64)
        for gram in members:
            before = holders[gram]
            if before:
                shared[before] += 1
            before.append(b)
        for a in np.flatnonzero(shared >= least * (sizes[:b] + sizes[b] - shared)).tolist():
            if shared[a]:
                pairs[a, b] = float(shared[a] / (sizes[a] + sizes[b] - shared[a]))
    return pairs


def jaccard(a: set[Any], b: set[Any]) -> float:
    """Shared over all."""
    return len(a & b) / max(len(a | b), 1)


def print_table(name: str, result: dict[str, Any]) -> None:
    """One method's rates, and its recall and precision."""
    print(f"\n{name}\n{'edited':>7}{'pairs':>7}{'Jaccard':>9}{'theory':>8}{'found':>8}{'sigmas':>8}")
    for r in result["by_rate"]:
        print(
            f"{r['at']:>7.0%}{r['pairs']:>7}{r['similarity']:>9.3f}{r['theory']:>8.3f}{r['found']:>8.3f}{r['sigmas']:>8.1f}"
        )
    print(
        f"of {result['similar_pairs']:,} pairs with Jaccard >= {result['threshold']:.3f} it joined "
        f"{result['recall']:.2%} (recall); of {result['joined_pairs']:,} joined pairs {result['precision']:.2%} are "
        f"that similar (precision), the least similar {result['least_similar_joined'] or 0:.3f}",
        flush=True,
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Share found by similarity, over the theoretical curve of each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4), sharey=True)
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        setting = METHODS[name][0].setting
        x = np.linspace(0, 1, 400)
        y = (1 - (1 - x**setting.rows) ** setting.bands) * (x >= setting.min_jaccard)
        axis.plot(x, y, color="grey", label=f"1 - (1 - J^{setting.rows})^{setting.bands}")
        rows = [r for r in result["by_similarity"] if r["pairs"]]
        at, found = [r["similarity"] for r in rows], [r["found"] for r in rows]
        errors = [math.sqrt(r["found"] * (1 - r["found"]) / r["pairs"]) for r in rows]
        axis.errorbar(at, found, yerr=errors, fmt="o", color="black", markersize=4, label="found")
        axis.set(title=name, xlabel="exact Jaccard similarity", ylim=(-0.03, 1.03))
        axis.legend(loc="upper left")
    axes[0].set_ylabel("share of pairs found")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
