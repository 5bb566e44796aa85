"""Find planted label errors: 5% of the labels of samples-1680 are flipped, five seeds, beside cleanlab.

    python benchmarks/moderation_label_errors.py                         TF-IDF and logistic regression
    python benchmarks/moderation_label_errors.py --peer VENV/bin/python    cleanlab in a virtual environment of its own
    python benchmarks/moderation_label_errors.py --features F.npz        a language model's (moderation_features.py)
    python benchmarks/moderation_label_errors.py --states OUT/cache-8-9-192.pt    its tokens (moderation_attention.py)

Precision of the 5% most suspicious labels: the share of them that was planted. Scores are cross-fitted: those of a text
come from classifiers that were trained without it, on one half (`--folds 2`, the paper's) or more, and averaged over
`--repeats` splits. The classifiers have balanced classes. "natural": the scores are converted to the labels' own share
of positives before they are averaged. Labels that were wrong before count as false alarms. No text is printed.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from moderation_data import CATEGORIES as ALL
from moderation_data import features, samples

DATA = Path(__file__).resolve().parents[2] / "shared/data/other/moderation"
SHARE, CATEGORIES = 0.05, ("S", "H", "V", "HR", "SH")


def tf_idf(texts):
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(texts)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True).fit_transform(texts)
    return hstack([words, letters]).tocsr()


class TokenStates:
    """A view of texts by the states of their tokens, each (t, d). An index takes some of the texts."""

    def __init__(self, states, n_seeds):
        self.states, self.n_seeds = states, n_seeds

    def __getitem__(self, rows):
        chosen = np.arange(len(self.states))[rows]
        return TokenStates([self.states[i] for i in chosen], self.n_seeds)


class PooledClassifier:
    """Attention pooling of `n_seeds` seeds, whose logits are averaged; in scikit-learn's form."""

    def fit(self, x, y):
        from gpt.moderation.frozen.attention_pooling import PoolingSettings, fit_attention_pooling

        # The other views have balanced classes, so that their 0.5 is where both classes are equally probable.
        self.shift = np.log(y.mean() / (1 - y.mean()))
        self.heads = [
            fit_attention_pooling(x.states, y[:, None], ["label"], PoolingSettings(seed=seed))
            for seed in range(x.n_seeds)
        ]
        return self

    def predict_proba(self, x):
        from gpt.moderation.frozen.attention_pooling import pooled_logits

        logits = np.mean([pooled_logits(one, x.states)[:, 0] for one in self.heads], axis=0) - self.shift
        positive = 0.5 + 0.5 * np.tanh(0.5 * logits)
        return np.stack([1 - positive, positive], axis=1)


def token_states(path, n_seeds):
    """The view of a file of token states that moderation_attention.py keeps."""
    import torch
    from moderation_finetune import Cache

    torch.set_num_threads(1)
    cache = Cache(**torch.load(path, weights_only=False))
    return TokenStates([cache.hidden[a:b] for a, b in itertools.pairwise(cache.starts)], n_seeds)


def classifier(x, c):
    """Logistic regression on TF-IDF or on standardised dense features; attention pooling on token states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(x, TokenStates):
        return PooledClassifier()
    if hasattr(x, "tocsr"):
        return LogisticRegression(C=10, max_iter=200, class_weight="balanced")
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200, class_weight="balanced"))


def cross_fit(views, y, *, folds, repeats, seed, c):
    """Scores (n,) of classifiers that did not train on the text, averaged over views and repeated splits.

    Once as they are, with balanced classes, and once with the labels' own share of positives."""
    balanced, natural = np.zeros(len(y)), np.zeros(len(y))
    odds = y.mean() / (1 - y.mean())
    for x in views:
        for repeat in range(repeats):
            fold = np.random.default_rng([seed, repeat]).permutation(len(y)) % folds
            for held in range(folds):
                model = classifier(x, c).fit(x[fold != held], y[fold != held])
                p = model.predict_proba(x[fold == held])[:, 1]
                balanced[fold == held] += p
                natural[fold == held] += odds * p / (odds * p + 1 - p)
    return balanced / (repeats * len(views)), natural / (repeats * len(views))


def cases(views, labels, args):
    """For each category and seed: flipped labels, both cross-fit scores, and which labels were flipped."""
    for i, category in enumerate(CATEGORIES):
        if args.categories and category not in args.categories:
            continue
        known = np.flatnonzero(~np.isnan(labels[:, i]))
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            y = labels[known, i].copy()
            planted = np.zeros(len(y), dtype=bool)
            planted[np.random.default_rng(seed).choice(len(y), round(SHARE * len(y)), replace=False)] = True
            y[planted] = 1 - y[planted]
            settings = {"folds": args.folds, "repeats": args.repeats, "seed": seed, "c": args.c}
            balanced, natural = cross_fit([x[known] for x in views], y, **settings)
            yield category, seed, y, balanced, planted, natural


def ours(found):
    from gpt.moderation.loop.label_errors import confident_errors, disagreements, most_suspicious

    rows = []
    for category, seed, y, p, planted, natural in found:
        top, confident = most_suspicious(y, p, SHARE), confident_errors(y, p)
        rows.append(
            {
                "category": category,
                "seed": seed,
                "top": planted[top].mean(),
                "top_natural": planted[most_suspicious(y, natural, SHARE)].mean(),
                "confident": int(confident.sum()),
                "confident_precision": planted[confident].mean() if confident.any() else None,
                "confident_recall": planted[confident].sum() / planted.sum(),
                "disagreements": int(disagreements(y, p).sum()),
                "confident_rows": np.flatnonzero(confident).tolist(),
            }
        )
    return rows


def cleanlab(found):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rows = []
    for category, seed, y, p, planted in found:
        probabilities, n = np.stack([1 - p, p], axis=1), int(np.ceil(SHARE * len(y)))
        labels = y.astype(int)
        quality = {
            how: get_label_quality_scores(labels, probabilities, method=how, adjust_pred_probs=adjust)
            for how, adjust in (("self_confidence", False), ("normalized_margin", True))
        }
        issues = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
        pruned = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
        rows.append(
            {
                "category": category,
                "seed": seed,
                "top": planted[np.argsort(quality["self_confidence"], kind="stable")[:n]].mean(),
                "top_margin_adjusted": planted[np.argsort(quality["normalized_margin"], kind="stable")[:n]].mean(),
                "pruned_precision": planted[pruned].mean() if pruned.any() else None,
                "pruned": int(pruned.sum()),
                "confident_rows": np.flatnonzero(issues).tolist(),
            }
        )
    return rows


def with_peer(args, found):
    with tempfile.TemporaryDirectory() as folder:
        cases_file, result = Path(folder) / "cases.npz", Path(folder) / "rows.json"
        arrays = {f"{i}_{k}": value for i, case in enumerate(found) for k, value in enumerate(case)}
        np.savez(cases_file, n=len(found), **arrays)
        command = [args.peer, __file__, "--cases", cases_file, "--json", result]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
        return json.loads(result.read_text())


def show(rows, peer):
    print("category  labels  top 5%  natural  cleanlab  adjusted  confident learning: flagged, precision, recall")
    for category in CATEGORIES:
        own = [row for row in rows if row["category"] == category]
        if not own:
            continue
        theirs = [row for row in peer if row["category"] == category]
        mean = lambda key, of: np.mean([row[key] for row in of if row[key] is not None]) if of else float("nan")  # noqa: E731
        print(
            f"{category:9} {own[0]['n']:6} {mean('top', own):7.3f} {mean('top_natural', own):8.3f} "
            f"{mean('top', theirs):9.3f} "
            f"{mean('top_margin_adjusted', theirs):9.3f}  {mean('confident', own):8.1f} "
            f"{mean('confident_precision', own):8.3f} {mean('confident_recall', own):8.3f}"
        )
    equal = sum(a["confident_rows"] == b["confident_rows"] for a, b in zip(rows, peer, strict=False))
    print(f"top 5%, all: {np.mean([row['top'] for row in rows]):.3f}")
    print(f"top 5%, all, natural: {np.mean([row['top_natural'] for row in rows]):.3f}")
    if peer:
        print(f"confident learning flags the same labels as cleanlab in {equal} of {len(rows)} cases")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="use other seeds to choose settings")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--features", type=Path, help="a second view, whose scores are averaged with those of TF-IDF")
    parser.add_argument("--states", type=Path, help="a further view: attention pooling of token states")
    parser.add_argument("--pooling-seeds", type=int, default=2, help="fits of attention pooling (default: %(default)s)")
    parser.add_argument("--layers", type=int, nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--pools", nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--c", type=float, default=0.003, help="inverse penalty on features (default: %(default)g)")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, help="(default: all)")
    parser.add_argument("--only-features", action="store_true", help="leave TF-IDF out")
    parser.add_argument("--peer", type=Path, help="a Python with cleanlab")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cases is not None:
        data = np.load(args.cases)
        found = [
            (str(data[f"{i}_0"]), int(data[f"{i}_1"]), *(data[f"{i}_{k}"] for k in (2, 3, 4))) for i in range(data["n"])
        ]
        args.json.write_text(json.dumps(cleanlab(found)))
        return
    texts, labels = samples(DATA)
    labels = labels[:, [ALL.index(one) for one in CATEGORIES]]
    views = [] if args.only_features else [tf_idf(texts)]
    views += [] if args.features is None else [features(args.features, "samples", args.layers, args.pools)]
    views += [] if args.states is None else [token_states(args.states, args.pooling_seeds)]
    found = list(cases(views, labels, args))
    rows = [{**row, "n": len(case[2])} for row, case in zip(ours(found), found, strict=True)]
    peer = with_peer(args, found) if args.peer is not None else []
    show(rows, peer)
    if args.json is not None:
        args.json.write_text(json.dumps({"ours": rows, "cleanlab": peer}))


if __name__ == "__main__":
    sys.exit(main())
