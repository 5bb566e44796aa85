"""Attention pooling of token states of frozen SmolLM2 beside TF-IDF, on five folds of samples-1680.

    python benchmarks/moderation_attention.py DATA RUN OUT [--layers 8] [--also TUNED ...] [--inner] [--json FILE]

DATA: a folder with OpenAI's samples-1680. RUN: SmolLM2 as `triaxial convert` imports it. The token states after each of
--layers are computed once and kept in OUT; a longer text is in pieces of --tokens tokens, and the heads read them all.
Heads of --seeds seeds are fitted to each layer, and their logits averaged. TUNED: folders of moderation_finetune.py.
`joint` is the mean of the logits of these heads, and of the trained blocks in each TUNED. Each fold's scores are kept
in OUT, and a second call fits the missing folds alone. --inner trains on the folds 2, 3 and 4 and scores fold 1, to
choose settings. The intervals and the peer are those of moderation_folds.py. No text is printed.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from moderation_data import CATEGORIES, samples
from moderation_finetune import NAMES, Cache, frozen_states, of_folds, pieces_of
from moderation_folds import FOLDS, LEFT_OUT, SEED, compare, word_scores
from torch import Tensor

from gpt.moderation.frozen.attention_pooling import PoolingSettings, fit_attention_pooling, pooled_logits
from gpt.moderation.measures.intervals import measure_interval
from gpt.moderation.measures.ranking import any_label, average_precision
from launch.runs.saved_run import load_run


def token_states(args: argparse.Namespace, texts: list[str], layer: int) -> list[Tensor]:
    """The states (t, d) bf16 of each text after `layer` blocks of the frozen trunk."""
    file = args.out / f"cache-{layer}-{layer + 1}-{args.tokens}.pt"
    if not file.exists():
        opened = load_run(args.run)
        end = opened.saved.tokenizer.end_of_document_id
        pieces = [pieces_of(one, args.tokens, end) for one in opened.saved.tokenizer.encode_batch(texts)]
        cache = frozen_states(opened.model, pieces, first=layer, last=layer + 1, dtype=torch.bfloat16)
        torch.save(cache.__dict__, file)
    cache = Cache(**torch.load(file, weights_only=False))
    return [cache.hidden[first:end] for first, end in zip(cache.starts[:-1], cache.starts[1:], strict=True)]


def fitted(args: argparse.Namespace, states: list[Tensor], labels: np.ndarray, parts: tuple, seed: int) -> np.ndarray:
    """The test texts' logits (n, c) by heads fitted to the others."""
    rows, test = parts
    settings = PoolingSettings(
        n_queries=args.queries, epochs=args.epochs, learning_rate=args.lr, weight_decay=args.decay, seed=seed
    )
    heads = fit_attention_pooling([states[i] for i in rows], labels[rows], NAMES, settings)
    return pooled_logits(heads, [states[i] for i in test])


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    texts, labels = samples(args.data)
    kept = [i for i, category in enumerate(CATEGORIES) if category != LEFT_OUT]
    labels = np.column_stack((labels[:, kept], any_label(labels)))
    fold = np.random.default_rng(SEED).permutation(len(texts)) % FOLDS
    kinds = {}
    for layer in args.layers:
        states = token_states(args, texts, layer)
        print(f"layer {layer}: {sum(map(len, states)):,} tokens, {time.process_time():.0f} s of processor time")
        if args.inner:
            parts = np.flatnonzero(fold > 1), np.flatnonzero(fold == 1)
            found = np.mean([fitted(args, states, labels, parts, seed) for seed in range(args.seeds)], axis=0)
            values = [average_precision(labels[parts[1], i], found[:, i]) for i in range(len(NAMES))]
            each = " ".join(f"{one} {value:.3f}" for one, value in zip(NAMES, values, strict=True))
            print(f"mean {np.mean(values):.3f}  {each}")
            continue
        for seed in range(args.seeds):
            kind = f"attention{layer}-seed{seed}"
            for i in range(FOLDS):
                if not (args.out / f"{kind}-fold{i}.npz").exists():
                    parts = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
                    logits = fitted(args, states, labels, parts, seed)
                    np.savez(args.out / f"{kind}-fold{i}.npz", **{kind: logits})
                    print(f"seed {seed}, fold {i}: {time.process_time():.0f} s of processor time", flush=True)
            kinds[kind] = of_folds(args.out, fold, kind, prefix=f"{kind}-")
    if not args.inner:
        _report(args, texts, labels, fold, kinds)


def _report(args: argparse.Namespace, texts: list[str], labels: np.ndarray, fold: np.ndarray, kinds: dict) -> None:
    kinds = {"attention": np.mean([*kinds.values()], axis=0)}
    kinds |= {str(folder): of_folds(folder, fold, "tuned") for folder in args.also}
    kinds["joint"] = np.mean([*kinds.values()], axis=0)
    peers, rows = word_scores(texts, labels, fold), {}
    for kind, ours in kinds.items():
        print(kind)
        rows[kind] = compare(NAMES, labels, ours, peers)
        gap = measure_interval(average_precision, labels[:, -1], ours[:, -1])
        print(f"any: {gap.estimate:.3f} ({gap.low:.3f} to {gap.high:.3f})")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "run", "out"):
        parser.add_argument(name, type=Path)
    for name, value in {"tokens": 192, "queries": 8, "epochs": 4, "seeds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, number in {"lr": 2e-3, "decay": 0.1}.items():
        parser.add_argument(f"--{name}", type=float, default=number)
    parser.add_argument("--layers", type=int, nargs="+", default=[8])
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders of moderation_finetune.py, to join")
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
