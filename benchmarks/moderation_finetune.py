"""Train the upper blocks of SmolLM2 and linear heads on samples-1680, beside TF-IDF on the same five folds.

    python benchmarks/moderation_finetune.py DATA RUN OUT [--inner] [--folds 0 1 2 3 4] [--also OUT2] [--json FILE]

DATA: a folder with OpenAI's samples-1680. RUN: SmolLM2 as `triaxial convert` imports it. The blocks before --first are
frozen: their output is computed once and kept in OUT/cache.pt. The blocks from --first to --last train, and those after
--last are left out. A linear head a category, on the mean over a text, starts from `fit_heads` on the untrained trunk.
A step of training sees a random window of --window tokens of each text; the cached states hold what was before it.
A longer text is in pieces of --tokens tokens, and its logits are the means over all of them.

Each fold's scores are written to OUT at once, and a second call trains only the folds that are missing. Kinds of
scores: `start`, the heads on the untrained trunk; `frozen`, heads on the means after --layers of the frozen trunk;
`tuned`, the trained blocks and heads; `joint`, the mean of the logits of the last two, and of those in the folder
--also, which has other blocks. --inner trains on the folds 2, 3 and 4 and scores fold 1, to choose settings: fold 0
is not read. No text is printed.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moderation_data import CATEGORIES, samples
from moderation_folds import FOLDS, LEFT_OUT, SEED, compare, word_scores
from torch import Tensor

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.model.gpt import GPT
from gpt.model.rope import angles_of
from gpt.moderation.frozen.linear_heads import fit_heads
from gpt.moderation.heads import CategoryHead, constrained
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.measures.ranking import any_label, average_precision
from gpt.moderation.pooling import MeanOverText
from gpt.training.optimizer import OptimizerConfig, ParameterGroup, build_optimizer
from launch.runs.saved_run import load_run

NAMES = (*(category for category in CATEGORIES if category != LEFT_OUT), "any")
PARENTS = tuple(NAMES.index(name[0]) if name in ("H2", "V2") else -1 for name in NAMES)
LOSS = ClassifierLoss(NAMES, (1.0,) * len(NAMES), PARENTS, pooling=MeanOverText())


@dataclass(frozen=True)
class Cache:
    """What the frozen trunk says of n texts. `hidden` (tokens, d) enters block `first`; `starts` (n + 1,) are the
    texts' borders in it. `means` (n, last + 1, d) fp32: of the states after each number of blocks. `normed` (n, d): the
    mean of the states after block `last`, normalised."""

    hidden: Tensor
    starts: np.ndarray
    means: np.ndarray
    normed: np.ndarray

    def batch(self, begin: np.ndarray, lengths: np.ndarray, states: Tensor) -> Batch:
        """Inputs (b, t, d), the tokens of `hidden` from `begin` on, and `states` (b, c) at the last one of each row."""
        x = torch.zeros(len(begin), int(lengths.max()), self.hidden.size(1), dtype=self.hidden.dtype)
        targets = torch.full((*x.shape[:2], states.size(1)), IGNORE, dtype=torch.int8)
        for row, (first, length) in enumerate(zip(begin, lengths, strict=True)):
            x[row, :length] = self.hidden[first : first + length]
            targets[row, length - 1] = states[row]
        return Batch(x, targets)


def upper_part(whole: GPT, first: int, last: int) -> GPT:
    """The blocks `first` to `last` - 1 with the final norm and a linear head of zeros, in the weights' dtype."""
    head = CategoryHead(whole.config.d_model, len(NAMES), kind="linear")
    part = GPT(whole.config, range(first, last), first=False, head=head)
    weights = whole.state_dict()
    part.load_state_dict({key: weights.get(key, torch.zeros_like(old)) for key, old in part.state_dict().items()})
    return part


@torch.inference_mode()
def frozen_states(whole: GPT, texts: list[list[list[int]]], *, first: int, last: int, dtype: torch.dtype) -> Cache:
    """Run the first `last` blocks once over all pieces of all texts."""
    trunk = GPT(whole.config, range(last), head=torch.nn.Identity())
    weights = whole.state_dict()
    trunk.load_state_dict({key: weights[key] for key in trunk.state_dict()})
    trunk.to(dtype)
    assert trunk.embed is not None
    assert trunk.norm is not None
    ids, of_text = [piece for text in texts for piece in text], np.repeat(np.arange(len(texts)), [*map(len, texts)])
    lengths = np.array([len(piece) for piece in ids])
    starts, d = np.append(0, np.cumsum(lengths)), whole.config.d_model
    hidden, sums = torch.zeros(int(starts[-1]), d, dtype=dtype), np.zeros((len(texts), last + 2, d))
    for rows in by_length(lengths, np.arange(len(ids)), tokens=1536):
        x = torch.zeros(len(rows), lengths[rows].max(), dtype=torch.int64)
        for row, i in enumerate(rows):
            x[row, : lengths[i]] = torch.tensor(ids[i])
        angles, y = angles_of(whole.config, None, length=x.size(1), device=x.device), trunk.embed(x)
        np.add.at(sums[:, 0], of_text[rows], _sums(y, lengths[rows]))
        for layer, block in enumerate(trunk.blocks.values()):
            if layer == first:
                for row, i in enumerate(rows):
                    hidden[starts[i] : starts[i + 1]] = y[row, : lengths[i]]
            y = block(y, angles)
            np.add.at(sums[:, layer + 1], of_text[rows], _sums(y, lengths[rows]))
        np.add.at(sums[:, -1], of_text[rows], _sums(trunk.norm(y), lengths[rows]))
    starts = starts[np.append(0, np.cumsum([*map(len, texts)]))]
    means = (sums / np.diff(starts)[:, None, None]).astype(np.float32)
    return Cache(hidden, starts, means[:, :-1], means[:, -1])


def train(
    part: GPT,
    cache: Cache,
    labels: np.ndarray,
    rows: np.ndarray,
    args: argparse.Namespace,
    seed: int,
    loss: ClassifierLoss = LOSS,
) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = OptimizerConfig(
        learning_rate=args.lr,
        beta2=0.98,
        weight_decay=0.01,
        groups=(ParameterGroup(("head.*",), lr_scale=args.head_scale),),
    )
    optimizer = build_optimizer(part.named_parameters(), config)
    states, whole = _states(labels), np.diff(cache.starts)
    lengths = whole.clip(max=args.window)
    per_epoch = -(-len(rows) // args.batch)
    total, losses = round(args.epochs * per_epoch), []
    for epoch in range(-(-total // per_epoch)):
        for chosen in _shuffled(lengths, rows, args.batch, rng):
            step = len(losses)
            if step == total:
                break
            scale = min((step + 1) / max(1, 0.1 * total), (total - step) / (0.9 * total), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * group["lr_scale"] * scale
            begin = cache.starts[chosen] + rng.integers(whole[chosen] - lengths[chosen] + 1)
            batch = cache.batch(begin, lengths[chosen], states[chosen])
            found = loss(outputs_of(part, batch), batch)
            optimizer.zero_grad()
            (found.sum / found.count).backward()
            torch.nn.utils.clip_grad_norm_(part.parameters(), config.max_gradient_norm)
            optimizer.step()
            losses.append(float(found.reported / found.count))
        print(f"  epoch {epoch + 1}: loss {np.mean(losses[-per_epoch:]):.3f}, {time.process_time():.0f} s", flush=True)


def outputs_of(part: GPT, batch: Batch) -> Tensor:
    """The heads' outputs (b, t, c) in fp32; products of the blocks are in bf16 if the inputs are."""
    with torch.autocast("cpu", torch.bfloat16, enabled=batch.inputs.dtype == torch.bfloat16):
        hidden = part.hidden_states(batch.inputs)
    assert part.head is not None
    found: Tensor = part.head(hidden)
    return found


@torch.inference_mode()
def scores(part: GPT, cache: Cache, rows: np.ndarray, *, tokens: int) -> np.ndarray:
    """The logits (n, c) of texts, in the order of `rows`: the means over all tokens of their pieces."""
    spans = [(i, at) for i in rows for at in range(cache.starts[i], cache.starts[i + 1], tokens)]
    of_text, begin = np.array(spans).T
    lengths = np.minimum(cache.starts[of_text + 1] - begin, tokens)
    sums = np.zeros((len(cache.starts) - 1, len(NAMES)))
    for chosen in by_length(lengths, np.arange(len(spans)), tokens=1536):
        states = torch.zeros(len(chosen), len(NAMES), dtype=torch.int8)
        outputs = outputs_of(part, cache.batch(begin[chosen], lengths[chosen], states))
        np.add.at(sums, of_text[chosen], _sums(outputs, lengths[chosen]))
    means = torch.from_numpy(sums[rows] / np.diff(cache.starts)[rows, None])
    return constrained(means, PARENTS).numpy()


def one_fold(whole: GPT, cache: Cache, labels: np.ndarray, parts: tuple, args: argparse.Namespace, seed: int) -> dict:
    """The test texts' scores by the trained part, and by heads on the frozen trunk."""
    rows, test = parts
    part = upper_part(whole, args.first, args.last)
    start = fit_heads(cache.normed[rows], labels[rows], NAMES, l2=args.head_l2, standardise=True)
    with torch.no_grad():
        part.head.classes.weight.copy_(torch.from_numpy(start.weight))
        part.head.classes.bias.copy_(torch.from_numpy(start.bias))
    means = cache.means[:, args.layers].reshape(len(labels), -1)
    frozen = fit_heads(means[rows], labels[rows], NAMES, l2=args.l2, standardise=True)
    print(f"  frozen heads: {time.process_time():.0f} s of processor time", flush=True)
    train(part, cache, labels, rows, args, seed)
    return {
        "start": start.logits(cache.normed[test]),
        "frozen": frozen.logits(means[test]),
        "tuned": scores(part, cache, test, tokens=args.tokens),
    }


def opened_folds(args: argparse.Namespace) -> tuple[list[str], np.ndarray, GPT, Cache, np.ndarray]:
    """The texts, their labels (n, c) with "any" last, the trunk, its frozen states, and the fold of each text (n,).

    The states are computed once and kept in `args.out`.
    """
    texts, labels = samples(args.data)
    kept = [i for i, category in enumerate(CATEGORIES) if category != LEFT_OUT]
    labels = np.column_stack((labels[:, kept], any_label(labels)))
    opened = load_run(args.run)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"cache-{args.first}-{args.last}-{args.tokens}.pt"
    if not file.exists():
        end = opened.saved.tokenizer.end_of_document_id
        pieces = [pieces_of(one, args.tokens, end) for one in opened.saved.tokenizer.encode_batch(texts)]
        cache = frozen_states(opened.model, pieces, first=args.first, last=args.last, dtype=torch.bfloat16)
        torch.save(cache.__dict__, file)
    cache = Cache(**torch.load(file, weights_only=False))
    fold = np.random.default_rng(SEED).permutation(len(texts)) % FOLDS
    return texts, labels, opened.model, cache, fold


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    texts, labels, whole, cache, fold = opened_folds(args)
    if args.inner:
        test = np.flatnonzero(fold == 1)
        found = one_fold(whole, cache, labels, (np.flatnonzero(fold > 1), test), args, SEED)
        np.savez(args.out / f"inner-{args.first}-{args.last}.npz", **found)
        for name, logits in found.items():
            values = [average_precision(labels[test, i], logits[:, i]) for i in range(len(NAMES))]
            each = " ".join(f"{one} {value:.3f}" for one, value in zip(NAMES, values, strict=True))
            print(f"{name:7} mean {np.mean(values):.3f}  {each}")
        return
    for i in args.folds:
        if not (args.out / f"fold{i}.npz").exists():
            rows = np.random.default_rng(SEED).permutation(np.flatnonzero(fold != i))
            parts = np.sort(rows[: round(args.share * len(rows))]), np.flatnonzero(fold == i)
            print(f"fold {i}", flush=True)
            np.savez(args.out / f"fold{i}.npz", **one_fold(whole, cache, labels, parts, args, SEED + i))
    _report(args, texts, labels, fold)


def _report(args: argparse.Namespace, texts: list[str], labels: np.ndarray, fold: np.ndarray) -> None:
    """Print the table of the folds that are there, if it is all of them."""
    files = [args.out / f"fold{i}.npz" for i in range(FOLDS)]
    if not all(file.exists() for file in files):
        print(f"{sum(file.exists() for file in files)} of {FOLDS} folds are done")
        return
    kinds = {kind: of_folds(args.out, fold, kind) for kind in ("start", "frozen", "tuned")}
    others = [of_folds(folder, fold, "tuned") for folder in args.also]
    kinds["joint"] = np.mean([kinds["frozen"], kinds["tuned"], *others], axis=0)
    peers, rows = word_scores(texts, labels, fold), {}
    for kind, ours in kinds.items():
        print(kind)
        rows[kind] = compare(NAMES, labels, ours, peers)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


def of_folds(folder: Path, fold: np.ndarray, kind: str, *, prefix: str = "") -> np.ndarray:
    """The scores (n, c) of all folds together."""
    found = np.zeros((len(fold), len(NAMES)))
    for i in range(FOLDS):
        with np.load(folder / f"{prefix}fold{i}.npz") as file:
            found[fold == i] = file[kind]
    return found


def _states(labels: np.ndarray) -> Tensor:
    """0 unknown, 1 negative, 2 positive (n, c) int8."""
    return torch.from_numpy(np.where(np.isnan(labels), 0, labels + 1).astype(np.int8))


def _sums(values: Tensor, lengths: np.ndarray) -> np.ndarray:
    """The sums (b, k) float64 of `values` (b, t, k) over the tokens of each row; padding is behind them."""
    inside = torch.arange(values.size(1)) < torch.from_numpy(lengths).unsqueeze(1)
    return (values.float() * inside.unsqueeze(-1)).sum(1).double().numpy()


def pieces_of(text: list[int], size: int, end: int) -> list[list[int]]:
    """A text in pieces of at most `size` tokens, each with its own end-of-document token."""
    return [[*text[at : at + size - 1], end] for at in range(0, max(1, len(text)), size - 1)]


def by_length(lengths: np.ndarray, rows: np.ndarray, *, tokens: int) -> list[np.ndarray]:
    """Rows of about equal length, at most `tokens` tokens with their padding in each batch."""
    order, found = rows[np.argsort(lengths[rows], kind="stable")], []
    while len(order):
        n = len(order)
        while n > 1 and n * lengths[order[n - 1]] > tokens:
            n -= max(1, n // 8)
        found.append(order[:n])
        order = order[n:]
    return found


def _shuffled(lengths: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches in random order. Of each 4 * size random texts, those of about equal length come together."""
    order = rng.permutation(rows)
    batches = []
    for start in range(0, len(order), 4 * size):
        part = order[start : start + 4 * size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "run", "out"):
        parser.add_argument(name, type=Path)
    for name, value in {"first": 12, "last": 16, "tokens": 192, "window": 48, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    defaults = {"epochs": 2.0, "lr": 2e-4, "head-scale": 2.0, "head-l2": 500.0, "l2": 200.0, "share": 1.0}
    for name, number in defaults.items():  # share: of the training texts
        parser.add_argument(f"--{name}", type=float, default=number)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 4, 8, 12, 16])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders of other blocks, to join")
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
