"""Train blocks of SmolLM2 with attention pooling on samples-1680, beside TF-IDF on the same five folds: one model.

    python benchmarks/moderation_pooled.py DATA RUN OUT [--first 12 --last 16] [--inner] [--json FILE]

DATA, RUN, the frozen blocks before --first, and OUT/cache-*.pt are those of moderation_finetune.py. The head, its
start, the pooling and the loss are those of `objective.pool = "attention"`, with --queries. A step of training sees a
random window of --window tokens of each text. A text is scored in pieces of --tokens tokens, with one softmax over all
of them. --frozen trains the head alone. Each fold's scores are kept in OUT, and a second call trains the missing folds.
--inner trains on the folds 2, 3 and 4 and scores fold 1, to choose settings: fold 0 is not read. No text is printed.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from moderation_finetune import NAMES, PARENTS, Cache, by_length, of_folds, opened_folds, outputs_of, train
from moderation_folds import FOLDS, SEED, compare, word_scores

from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.moderation.heads import CategoryHead, constrained
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.measures.intervals import measure_interval
from gpt.moderation.measures.ranking import average_precision
from gpt.moderation.pooling import AttentionOverText


def pooled_part(whole: GPT, args: argparse.Namespace, seed: int) -> GPT:
    """The blocks from --first to --last with the final norm, and a head that starts as in a run with this seed."""
    head = CategoryHead(whole.config.d_model, len(NAMES), kind=args.head, hidden=args.hidden, n_queries=args.queries)
    part = GPT(whole.config, range(args.first, args.last), first=False, head=head)
    initialise(part, whole.config, seed=seed)
    weights = whole.state_dict()
    part.load_state_dict({key: weights.get(key, old) for key, old in part.state_dict().items()})
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(name.startswith("head.") or not args.frozen)
    return part


@torch.inference_mode()
def scores(part: GPT, cache: Cache, rows: np.ndarray, loss: ClassifierLoss, *, tokens: int) -> np.ndarray:
    """The logits (n, c) of texts, in the order of `rows`."""
    spans = [(i, at) for i in rows for at in range(cache.starts[i], cache.starts[i + 1], tokens)]
    of_text, begin = np.array(spans).T
    lengths = np.minimum(cache.starts[of_text + 1] - begin, tokens)
    unknown = torch.zeros(1, len(NAMES), dtype=torch.int8)
    found: dict[int, torch.Tensor] = {}
    for chosen in by_length(lengths, np.arange(len(spans)), tokens=1536):
        batch = cache.batch(begin[chosen], lengths[chosen], unknown.expand(len(chosen), -1))
        for row, piece in zip(outputs_of(part, batch), chosen, strict=True):
            found[int(piece)] = row[: lengths[piece]]
    texts = [torch.cat([found[piece] for piece in np.flatnonzero(of_text == i)]) for i in rows]
    logits = torch.stack([loss.pooling(text.unsqueeze(0), None)[0, -1] for text in texts])
    return constrained(logits, PARENTS).double().numpy()


def one_fold(
    whole: GPT, cache: Cache, labels: np.ndarray, parts: tuple, args: argparse.Namespace, seed: int
) -> np.ndarray:
    """The test texts' logits by a model trained on the others."""
    rows, test = parts
    loss = ClassifierLoss(NAMES, (1.0,) * len(NAMES), PARENTS, pooling=AttentionOverText(args.queries, len(NAMES)))
    part = pooled_part(whole, args, seed)
    train(part, cache, labels, rows, args, seed, loss)
    found = scores(part, cache, test, loss, tokens=args.tokens)
    print(f"  scored: {time.process_time():.0f} s of processor time", flush=True)
    return found


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    texts, labels, whole, cache, fold = opened_folds(args)
    print(f"ready: {time.process_time():.0f} s of processor time", flush=True)
    if args.inner:
        test = np.flatnonzero(fold == 1)
        logits = one_fold(whole, cache, labels, (np.flatnonzero(fold > 1), test), args, SEED)
        values = [average_precision(labels[test, i], logits[:, i]) for i in range(len(NAMES))]
        each = " ".join(f"{one} {value:.3f}" for one, value in zip(NAMES, values, strict=True))
        print(f"mean {np.mean(values):.3f}  {each}")
        return
    for i in args.folds:
        if not (args.out / f"pooled-fold{i}.npz").exists():
            print(f"fold {i}", flush=True)
            parts = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
            np.savez(args.out / f"pooled-fold{i}.npz", pooled=one_fold(whole, cache, labels, parts, args, SEED + i))
    _report(args, texts, labels, fold)


def _report(args: argparse.Namespace, texts: list[str], labels: np.ndarray, fold: np.ndarray) -> None:
    """Print the table if all folds are done, else how many are."""
    done = [i for i in range(FOLDS) if (args.out / f"pooled-fold{i}.npz").exists()]
    if len(done) < FOLDS:
        print(f"{len(done)} of {FOLDS} folds are done")
        return
    ours = of_folds(args.out, fold, "pooled", prefix="pooled-")
    rows = compare(NAMES, labels, ours, word_scores(texts, labels, fold))
    gap = measure_interval(average_precision, labels[:, -1], ours[:, -1])
    print(f"any: {gap.estimate:.3f} ({gap.low:.3f} to {gap.high:.3f})")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "run", "out"):
        parser.add_argument(name, type=Path)
    numbers = {"first": 12, "last": 16, "tokens": 192, "window": 64, "batch": 16, "queries": 8, "hidden": 256}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, number in {"epochs": 2.0, "lr": 2e-4, "head-scale": 5.0}.items():
        parser.add_argument(f"--{name}", type=float, default=number)
    parser.add_argument("--head", choices=["linear", "mlp", "shared_mlp"], default="linear")
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
