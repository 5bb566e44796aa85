"""Linear heads on frozen features beside TF-IDF and logistic regression, on the same folds of samples-1680.

    python benchmarks/moderation_folds.py DATA FEATURES.npz [--layers 8 12] [--pools mean last] [--l2 200] [--json FILE]

FEATURES.npz is a file of moderation_features.py. For each category and for "any", the table has the average precision
(AUPRC) of five folds together, and the difference with its 95% interval by a paired bootstrap over texts. The peer is
the stronger of two: scikit-learn's defaults, and words and pairs of words with balanced classes and C = 10. With --l2
auto, the penalty of each category is chosen by leave-one-out on the other folds. No text is printed.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from moderation_data import CATEGORIES, samples
from moderation_data import features as features_of
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt.moderation.frozen.leave_one_out import choose_l2
from gpt.moderation.frozen.linear_heads import fit_heads
from gpt.moderation.measures.intervals import difference_interval
from gpt.moderation.measures.ranking import any_label, average_precision

FOLDS, SEED = 5, 0
LEFT_OUT = "S3"  # the texts of its positives are not in this copy of the data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--pools", nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--l2", default="auto", help="a number, or auto (default)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts, labels = samples(args.data)
    kept = [i for i, category in enumerate(CATEGORIES) if category != LEFT_OUT]
    names = [*(CATEGORIES[i] for i in kept), "any"]
    labels = np.column_stack((labels[:, kept], any_label(labels)))
    features = features_of(args.features, "samples", args.layers, args.pools)
    fold = np.random.default_rng(SEED).permutation(len(texts)) % FOLDS
    began = time.process_time()
    ours = np.full(labels.shape, np.nan)
    for i in range(FOLDS):
        train = features[fold != i], labels[fold != i]
        l2 = choose_l2(*train, names) if args.l2 == "auto" else float(args.l2)
        fitted = fit_heads(*train, names, l2=l2, standardise=True)
        ours[fold == i] = fitted.logits(features[fold == i])
    seconds = time.process_time() - began
    print(
        f"{features.shape[1]} features, l2 {args.l2}: {FOLDS} fits of {len(names)} heads in {seconds:.1f} s of "
        "processor time"
    )
    rows = compare(names, labels, ours, word_scores(texts, labels, fold))
    if args.json is not None:
        args.json.write_text(
            json.dumps({"layers": args.layers, "pools": args.pools, "l2": args.l2, "categories": rows}, indent=1)
        )


def compare(
    names: Sequence[str], labels: np.ndarray, ours: np.ndarray, peers: Mapping[str, np.ndarray]
) -> dict[str, dict[str, object]]:
    """Print and return the AUPRC of each category (column) by us and the better peer, and the difference with its
    95% interval."""
    print("category  ours   TF-IDF  difference (95%)")
    rows = {}
    for column, name in enumerate(names):
        label = labels[:, column]
        found = {peer: average_precision(label, scores[:, column]) for peer, scores in peers.items()}
        best = max(found, key=lambda peer: found[peer])
        gap = difference_interval(average_precision, label, peers[best][:, column], ours[:, column])
        mine = average_precision(label, ours[:, column])
        rows[name] = {"ours": mine, **found, "difference": [gap.estimate, gap.low, gap.high]}
        print(
            f"{name:8}  {mine:.3f}  {found[best]:.3f}   {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) {best}"
        )
    return rows


def word_scores(texts: list[str], labels: np.ndarray, fold: np.ndarray) -> dict[str, np.ndarray]:
    """The scores (n, c) of both peers, each text's by a model of the other folds."""
    return {
        "defaults": by_words(texts, labels, fold, TfidfVectorizer(), LogisticRegression(max_iter=1000)),
        "tuned": by_words(
            texts,
            labels,
            fold,
            TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
            LogisticRegression(max_iter=1000, C=10, class_weight="balanced"),
        ),
    }


def by_words(
    texts: list[str], labels: np.ndarray, fold: np.ndarray, words: TfidfVectorizer, model: LogisticRegression
) -> np.ndarray:
    """The scores (n, c) of each text by a model of the other folds, each category on its known labels."""
    found = np.full(labels.shape, np.nan)
    for column, label in enumerate(labels.T):
        for i in range(FOLDS):
            train, test = np.flatnonzero((fold != i) & ~np.isnan(label)), np.flatnonzero(fold == i)
            model.fit(words.fit_transform([texts[k] for k in train]), label[train])
            found[test, column] = model.decision_function(words.transform([texts[k] for k in test]))
    return found


if __name__ == "__main__":
    main()
