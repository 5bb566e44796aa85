"""Domain adversarial training on frozen features: Davidson's tweets to category H of samples-1680, five seeds.

    python benchmarks/moderation_wdat.py TWEETS.npz SAMPLES.npz [--layers 8] [--pools mean] [--weights 0 0.01 1]

TWEETS.npz and SAMPLES.npz are files of moderation_features.py, or one with both. An encoder [d, 128] with GELU is on
top of the features, a linear head and WDAT's critic on top of it. Source: the first --tweets tweets of which --hateful
are hateful, with labels. Target: half of samples-1680, by seed, without labels. Measured: AUPRC of H on the other half,
and the distance of the domains by the critic at the end. Weight 0 is no adaptation: the same seed, batches and steps.
Features are standardised by the source's mean and deviation.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from moderation_data import features
from torch import Tensor, nn

from gpt.losses.batch import Batch
from gpt.moderation.heads import CategoryHead
from gpt.moderation.loss import ClassifierLoss
from gpt.moderation.measures.ranking import average_precision
from gpt.moderation.wdat import Critic, clip_critic

SEEDS, STEPS, BATCH, WIDTH, CLIP = 5, 300, 64, 128, 0.01
H = 1  # the column of the labels


def trained(source: Tensor, label: Tensor, target: Tensor, *, weight: float, seed: int) -> tuple[nn.Module, float]:
    """The encoder with its head after STEPS steps of BATCH texts of each domain, and the last ten distances' mean."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(source.size(1), WIDTH), nn.GELU())
    head = CategoryHead(WIDTH, 1, kind="linear", critic=Critic(WIDTH, hidden=300, weight=weight))
    loss = ClassifierLoss(("H",), (1.0,), (-1,), adversarial=True)
    critic = [p for name, p in head.named_parameters() if name.startswith("critic.")]
    others = [*encoder.parameters(), *(p for name, p in head.named_parameters() if not name.startswith("critic."))]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": critic, "weight_decay": 0.0}], lr=1e-3
    )
    distances = []
    for _ in range(STEPS):
        rows, more = torch.randint(len(source), (BATCH,)), torch.randint(len(target), (BATCH,))
        states = torch.cat((label[rows] + 1, torch.zeros(BATCH))).to(torch.int8)[None, :, None]
        found = loss(head(encoder(torch.cat((source[rows], target[more])))[None]), Batch(states[..., 0].long(), states))
        optimizer.zero_grad()
        (found.sum / found.count).backward()
        optimizer.step()
        with torch.no_grad():
            clip_critic(((f"head.{name}", p) for name, p in head.named_parameters()), CLIP)
        distances.append(float(found.metrics["distance"] / found.count))
    return nn.Sequential(encoder, head), float(np.mean(distances[-10:]))


def labelled_tweets(args: argparse.Namespace) -> tuple[np.ndarray, Tensor]:
    """Features (n, d) of the first hateful and other tweets of the file, and 1 where hateful (n,)."""
    with np.load(args.source) as file:
        hateful = file["hateful"] > 0
    rows = np.concatenate(
        (np.flatnonzero(hateful)[: args.hateful], np.flatnonzero(~hateful)[: args.tweets - args.hateful])
    )
    label = torch.from_numpy(hateful[rows]).float()
    if len(rows) < args.tweets or label.sum() < args.hateful:
        raise SystemExit(
            f"{args.source} has {hateful.sum()} hateful tweets of {len(hateful)}. Make it with --keep-hate"
        )
    return features(args.source, "tweets", args.layers, args.pools)[rows], label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--pools", nargs="+", help="of the features (default: all in the file)")
    parser.add_argument("--tweets", type=int, default=1000)
    parser.add_argument("--hateful", type=int, default=300)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.01, 1.0, 100.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, label = labelled_tweets(args)
    target = features(args.target, "samples", args.layers, args.pools)
    with np.load(args.target) as file:
        truth = file["labels"][:, H]
    mean, deviation = source.mean(0), source.std(0) + 1e-6
    source, target = (torch.from_numpy((x - mean) / deviation).float() for x in (source, target))
    print("weight  AUPRC of H by seed                   mean   above weight 0   distance")
    base: list[float] = []
    for weight in args.weights:
        values, distances = [], []
        for seed in range(SEEDS):
            half = np.random.default_rng(seed).permutation(len(target))
            unlabelled, test = half[: len(half) // 2], half[len(half) // 2 :]
            model, distance = trained(source, label, target[unlabelled], weight=weight, seed=seed)
            with torch.no_grad():
                scores = model(target[test][None])[0, :, 0].numpy()
            values.append(average_precision(truth[test], scores))
            distances.append(distance)
        base = base or values
        above = sum(value > before for value, before in zip(values, base, strict=True))
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"{weight:6g}  {each}   {np.mean(values):.3f}  {above} of {SEEDS}   {np.mean(distances):.2e}", flush=True)


if __name__ == "__main__":
    main()
