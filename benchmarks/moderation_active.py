"""Active learning for a rare category: positives found and AUPRC at equal labels, against random and small-text.

    python benchmarks/moderation_active.py                       five seeds, TF-IDF and logistic regression
    python benchmarks/moderation_active.py --peer VENV/bin/python    small-text in a virtual environment of its own
    python benchmarks/moderation_active.py --features F.npz      a language model's features (moderation_features.py)

Hate is 1% of a pool of 15,000 of Davidson's tweets: 150 positives. 300 random ones are labelled first, then five rounds
of 100. AUPRC is measured on 4,000 other tweets with the natural share of hate (5.8%). Every strategy has the same pool,
first labels, features and classifier (logistic regression with balanced classes). A language model's features are
standardised and turned to --components principal components, by all tweets without their labels; `--with-words` adds
TF-IDF's columns. No text is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from moderation_data import features, tweets

DATA = Path(__file__).resolve().parents[2] / "shared/data/other/moderation"
POOL, POSITIVES, FIRST, ROUNDS, BATCH, TEST = 15_000, 150, 300, 5, 100, 4_000
STRATEGIES = {  # shares of random, above, uncertain; the rank from which `above` draws
    "random": ((1.0, 0.0, 0.0), None),
    "paper": ((1.0, 1.0, 1.0), None),
    "paper, top 200": ((1.0, 1.0, 1.0), 200),
    "shares 1 4 4, top 200": ((1.0, 4.0, 4.0), 200),
    "shares 1 9 0, no draw": ((1.0, 9.0, 0.0), 1),
    "shares 1 0 9": ((1.0, 0.0, 9.0), None),
    "shares 0 0 1": ((0.0, 0.0, 1.0), None),
}
PEERS = ("LeastConfidence", "PredictionEntropy", "DiscriminativeActiveLearning", "ContrastiveActiveLearning")


def tf_idf(texts, *, letters):
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(texts)
    if not letters:
        return words
    pieces = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 4), min_df=5, sublinear_tf=True, max_features=40_000
    ).fit_transform(texts)
    return hstack([words, pieces]).tocsr()


def split(y, seed):
    """Pool (15,000, hate 1%), first labels (300 of the pool) and test (4,000, natural share), as rows."""
    rng = np.random.default_rng(seed)
    positive, negative = rng.permutation(np.flatnonzero(y)), rng.permutation(np.flatnonzero(~y))
    held = round(TEST * y.mean())
    pool = rng.permutation(np.concatenate([positive[:POSITIVES], negative[: POOL - POSITIVES]]))
    test = np.concatenate(
        [positive[POSITIVES : POSITIVES + held], negative[POOL - POSITIVES : POOL - POSITIVES + TEST - held]]
    )
    return pool, pool[:FIRST], test


def inputs(args):
    """Features (n, d) and whether each tweet is hateful (n,)."""
    texts, hateful, _ = tweets(DATA)
    y = hateful > 0
    if args.features is None:
        return tf_idf(texts, letters=args.letters), y
    with np.load(args.features) as file:
        rows = file["rows"]
    dense = components(features(args.features, "tweets", args.layers, args.pools), args.components)
    if not args.with_words:
        return dense, y[rows]
    from scipy.sparse import csr_matrix, hstack

    words = tf_idf([texts[i] for i in rows], letters=args.letters)
    return hstack([words, csr_matrix(dense)]).tocsr(), y[rows]


def components(x, n):
    """The first n principal components of standardised features; rows have a mean square length of 1."""
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    _, turn = np.linalg.eigh((x.T @ x).astype(np.float64))
    x = x @ turn[:, ::-1][:, :n].astype(np.float32)
    return x / np.sqrt((x**2).sum(1).mean())


def classifier(c):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", C=c, max_iter=300)


def run(x, y, seed, choose, c):
    """Label in rounds; return positives after each round and the AUPRC of the classifier trained on them."""
    from sklearn.metrics import average_precision_score

    pool, first, test = split(y, seed)
    is_labelled = np.zeros(len(y), dtype=bool)
    is_labelled[first] = True
    positives, auprc = [], []
    for number in range(ROUNDS + 1):
        rows = np.flatnonzero(is_labelled)
        model = classifier(c).fit(x[rows], y[rows]) if y[rows].any() else None
        positives.append(int(y[rows].sum()))
        auprc.append(
            float(y[test].mean())
            if model is None
            else average_precision_score(y[test], model.predict_proba(x[test])[:, 1])
        )
        if number < ROUNDS:
            rest = pool[~is_labelled[pool]]
            scores = np.full(len(rest), 0.5) if model is None else model.predict_proba(x[rest])[:, 1]
            is_labelled[choose(rest, scores, rows, model, 1_000 * seed + number)] = True
    return positives, auprc


def ours(shares, top):
    from gpt.moderation.loop.selection import SelectionSettings, add_texts, empty_pool, select

    def choose(rest, scores, rows, model, seed):
        settings = SelectionSettings(BATCH, ("H",), seed=seed, shares=shares, top=top)
        state = add_texts(empty_pool(), settings, [str(i) for i in rest], scores[:, None], [""] * len(rest))
        return [int(one.id) for one in select(state, settings)]

    return choose


def small_text(name, x, y, c):
    """One of small-text's strategies; those that need embeddings get these features."""
    import small_text

    dense = None
    if name == "ContrastiveActiveLearning":
        from sklearn.decomposition import TruncatedSVD

        dense = TruncatedSVD(100, random_state=0).fit_transform(x) if hasattr(x, "tocsr") else x

    def choose(rest, scores, rows, model, seed):
        if model is None:
            return np.random.default_rng(seed).choice(rest, BATCH, replace=False)
        np.random.seed(seed)  # noqa: NPY002 -- small-text draws from the global generator
        pool = np.concatenate([rows, rest])
        labels = y.astype(int)
        data = small_text.SklearnDataset(x[pool], labels[pool], target_labels=np.array([0, 1]))
        wrapped = small_text.SklearnClassifier(model, 2)
        unlabelled, labelled = np.arange(len(rows), len(pool)), np.arange(len(rows))
        if name == "DiscriminativeActiveLearning":
            factory = small_text.SklearnClassifierFactory(classifier(c), 2)
            strategy = small_text.DiscriminativeActiveLearning(factory, 2)
        else:
            strategy = getattr(small_text, name)()
        more = {} if dense is None else {"embeddings": dense[pool]}
        return pool[strategy.query(wrapped, data, unlabelled, labelled, labels[rows], n=BATCH, **more)]

    return choose


def measure(name, choose, x, y, args):
    started_at = time.process_time()
    found = [run(x, y, seed, choose, args.c) for seed in range(args.seeds)]
    value = {
        "strategy": name,
        "positives": [positives for positives, _ in found],
        "auprc": [[round(float(one), 4) for one in auprc] for _, auprc in found],
        "processor_s": round(time.process_time() - started_at, 1),
    }
    print(json.dumps(value), flush=True)
    return value


def show(results):
    base = next(one for one in results if one["strategy"] == "random")
    found = {one["strategy"]: np.array([row[-1] - row[0] for row in one["positives"]]) for one in results}
    print(f"\n{'strategy':32} positives of 800   found in rounds   times random   AUPRC   times random")
    for one in results:
        total, last = [row[-1] for row in one["positives"]], np.mean([row[-1] for row in one["auprc"]])
        print(
            f"{one['strategy']:32} {min(total):3}-{max(total):3}, mean {np.mean(total):5.1f} "
            f"{found[one['strategy']].mean():12.1f} "
            f"{np.mean(total) / np.mean([row[-1] for row in base['positives']]):8.2f} "
            f"({found[one['strategy']].mean() / found['random'].mean():.2f} in rounds) "
            f"{last:7.3f} {last / np.mean([row[-1] for row in base['auprc']]):8.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--pools", nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--components", type=int, default=256)
    parser.add_argument("--with-words", action="store_true", help="TF-IDF beside the language model's features")
    parser.add_argument("--letters", action="store_true", help="TF-IDF of 3 and 4 letters too")
    parser.add_argument("--c", type=float, default=10.0, help="inverse penalty of the logistic regression")
    parser.add_argument("--strategies", nargs="+", choices=tuple(STRATEGIES), default=tuple(STRATEGIES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--peer", type=Path, help="a Python with small-text")
    parser.add_argument("--json", type=Path, help="write all curves")
    parser.add_argument("--only-peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    x, y = inputs(args)
    if args.only_peer:
        results = [measure(f"small-text {one}", small_text(one, x, y, args.c), x, y, args) for one in args.peers]
        args.json.write_text(json.dumps(results))
        return
    results = [measure(name, ours(*STRATEGIES[name]), x, y, args) for name in args.strategies]
    if args.peer is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peer.json"
            command = [args.peer, __file__, *sys.argv[1:], "--only-peer", "--json", path]  # the last --json counts
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
            results += json.loads(path.read_text())
    show(results)
    if args.json is not None:
        args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
