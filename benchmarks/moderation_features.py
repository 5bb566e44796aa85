"""Features of public labelled texts from layers of SmolLM2, made by our own code and kept in a file.

    triaxial convert SMOLLM2 --to triaxial --output RUN --weights-only
    python benchmarks/moderation_features.py DATA RUN FILE.npz --layers 8 16 24 --all-tweets --prefix 0

DATA: a folder with OpenAI's samples-1680 and Davidson's tweets. RUN: SmolLM2 as `triaxial convert` imports it. Texts
are cut after --max-tokens - 1 tokens, and no text is printed. One core with AVX-512 bf16 reads some 1,000 tokens a
second through 16 layers; samples-1680 has 320,000 tokens, and all tweets 700,000. `--prefix 0` puts <|endoftext|>
before each text: the first token takes most of the attention and has a state far from all others, so that the pools
leave it out.
"""

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from moderation_data import samples, tweets

from gpt.model.gpt import GPT
from gpt.moderation.frozen.trunk_features import layer_features
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from launch.runs.saved_run import load_run

CHUNK = 1000


def open_trunk(run: Path, depth: int) -> tuple[GPT, Tokenizer]:
    """The first `depth` layers of a run in bf16, and its tokenizer."""
    whole = load_run(run).model
    trunk = GPT(whole.config, range(depth), last=depth == whole.config.n_layers)  # only the layers that are asked for
    trunk.load_state_dict({key: value for key, value in whole.state_dict().items() if key in trunk.state_dict()})
    return trunk.to(torch.bfloat16).eval(), load_tokenizer(next((run / "tokenizer").glob("tokenizer.json")))


def tokens_of(texts: list[str], tokenizer: Tokenizer, *, prefix: list[int], max_tokens: int) -> list[np.ndarray]:
    """Tokens of each text: the prefix, at most `max_tokens` - 1 of its own, and the end-of-document token."""
    return [
        np.array([*prefix, *tokens[: max_tokens - 1], tokenizer.end_of_document_id])
        for tokens in tokenizer.encode_batch(texts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "run", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--pools", nargs="+", default=["mean", "last"])
    parser.add_argument("--prefix", type=int, help="a token before each text, left out of the pools")
    parser.add_argument("--tweets", type=int, default=1500)
    parser.add_argument("--all-tweets", action="store_true", help="all tweets, in the file's order")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a text with its end-of-document token")
    parser.add_argument("--keep-hate", action="store_true", help="all hateful tweets, and others up to --tweets")
    parser.add_argument("--no-samples", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trunk, tokenizer = open_trunk(args.run, max(args.layers))
    texts, labels = samples(args.data)
    if args.no_samples:
        texts, labels = [], labels[:0]
    more, hateful, rows = tweets(args.data, None if args.all_tweets else args.tweets, keep_hate=args.keep_hate)
    prefix = [] if args.prefix is None else [args.prefix]
    ids = tokens_of([*texts, *more], tokenizer, prefix=prefix, max_tokens=args.max_tokens)
    found = in_chunks(trunk, ids, args, skip=len(prefix))
    np.savez(
        args.file,
        layers=np.array(args.layers),
        pools=np.array(args.pools),
        samples=found[: len(texts)],
        labels=labels,
        tweets=found[len(texts) :],
        hateful=hateful,
        rows=rows,
    )


def in_chunks(trunk: GPT, ids: list[np.ndarray], args: argparse.Namespace, *, skip: int) -> np.ndarray:
    """(n, layers, pools, d). Each chunk is kept beside the file, so that the same command continues after a stop."""
    digest = hashlib.sha256(repr((sorted(vars(args).items()), [one.tolist() for one in ids])).encode())
    folder = args.file.with_suffix(f".{digest.hexdigest()[:12]}")  # other settings have another folder
    folder.mkdir(exist_ok=True)
    found = []
    for start in range(0, len(ids), CHUNK):
        path, part = folder / f"{start}.npy", ids[start : start + CHUNK]
        if not path.exists():
            began = time.process_time()
            values = layer_features(trunk, part, args.layers, pools=args.pools, skip=skip)
            np.save(folder / "new.npy", values.reshape(len(part), len(args.layers), len(args.pools), -1))
            (folder / "new.npy").rename(path)
            tokens, seconds = sum(map(len, part)), time.process_time() - began
            print(
                f"{start + len(part):,} of {len(ids):,} texts; {tokens:,} tokens, "
                f"{tokens / seconds:.0f} a second of processor time",
                flush=True,
            )
        found.append(np.load(path))
    return np.concatenate(found)


if __name__ == "__main__":
    main()
