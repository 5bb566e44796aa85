"""Features of public labelled texts from layers of SmolLM2, made by our own code and kept in a file.

    python benchmarks/moderation_features.py DATA RUN FILE.npz --layers 8 16 --tweets 1500

DATA: a folder with OpenAI's samples-1680 and Davidson's tweets. RUN: SmolLM2 as `triaxial convert` imports it. Texts
are cut after 511 tokens, and no text is printed. One core with AVX-512 bf16 needs about five minutes for 16 layers.
"""

import argparse
import csv
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch

from gpt.model.gpt import GPT
from gpt.moderation.frozen.trunk_features import layer_features
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.runs.saved_run import load_run

SAMPLES, TWEETS = "openai-samples-1680-s3-text-removed.jsonl.gz", "davidson-labeled_data.csv.gz"
CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
MAX_TOKENS = 512


def samples(folder: Path) -> tuple[list[str], np.ndarray]:
    """The texts of samples-1680 that are there, and their labels (n, 8): 1, 0, NaN where unknown."""
    with gzip.open(folder / SAMPLES, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row.get("prompt")]
    labels = [[np.nan if row.get(category) is None else row[category] for category in CATEGORIES] for row in rows]
    return [row["prompt"] for row in rows], np.array(labels, dtype=np.float64)


def tweets(folder: Path, n: int) -> tuple[list[str], np.ndarray]:
    """`n` of Davidson's tweets, drawn by seed 0, and whether most annotators found each hateful: (n,)."""
    with gzip.open(folder / TWEETS, "rt", encoding="utf-8") as lines:
        rows = [*csv.DictReader(lines)]
    chosen = np.random.default_rng(0).permutation(len(rows))[:n]
    return [rows[i]["tweet"] for i in chosen], np.array([rows[i]["class"] == "0" for i in chosen], dtype=np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "run", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--tweets", type=int, default=1500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened = load_run(args.run)
    whole, depth = opened.model, max(args.layers)
    trunk = GPT(whole.config, range(depth), last=depth == whole.config.n_layers)  # only the layers that are asked for
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if key in trunk.state_dict()})
    trunk = trunk.to(torch.bfloat16).eval()
    tokenizer = load_tokenizer(next((args.run / "tokenizer").glob("tokenizer.json")))
    texts, labels = samples(args.data)
    more, hateful = tweets(args.data, args.tweets)
    ids = [
        np.array([*tokens[: MAX_TOKENS - 1], tokenizer.end_of_document_id])
        for tokens in tokenizer.encode_batch([*texts, *more])
    ]
    began, done = time.process_time(), 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done // 200 != (done - n) // 200:
            print(f"{done:,} of {len(ids):,} texts, {time.process_time() - began:.0f} s of processor time", flush=True)

    found = layer_features(trunk, ids, args.layers, advance=advance)
    np.savez(
        args.file,
        layers=np.array(args.layers),
        samples=found[: len(texts)],
        labels=labels,
        tweets=found[len(texts) :],
        hateful=hateful,
    )


if __name__ == "__main__":
    main()
