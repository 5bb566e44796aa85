"""GPT-2 tokenization beside tiktoken called directly, and the stage on one process and on two, in one run.

    python -m benchmarks.tokenization --tokenizer ../shared/data/tokenizer/gpt2-vocab.bpe --texts TEXT_OR_JSONL...

All get the same texts (repeated up to --megabytes; nothing is remembered from one text to the next) and the same
vocabulary. `encode` is our tokenizer alone, from strings to arrays of ids; the peers go from strings to lists, which is
what tiktoken's two ordinary calls give. `stage` is the whole tokenize stage: decompressing and parsing a shard,
hashing, ids, and writing them in shuffled order. `stage_1` and `stage_2` are the worker pool on four shards.
"""

import argparse
import gzip
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import alternate, check_writable, processor, report_result, serve, speed_ratios
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import tokenize_shard
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.workers import LocalWorkers
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

_SHARDS = 4
_SPLIT = SplitConfig(validation_fraction=0.01, seed=0)
_DOCUMENT_CHARACTERS = 4000  # a text file is cut into documents of about this length
CONTENDERS = ("encode", "encode_ordinary", "encode_ordinary_batch", "stage", "stage_1", "stage_2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="GPT-2's files, as tokenizer.path names them")
    parser.add_argument("--texts", type=Path, nargs="+", help=".txt, .jsonl and .jsonl.gz files")
    parser.add_argument("--megabytes", type=float, default=16.0, help="of text for each round of each contender")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(lambda: contender(args.serve[0], Path(args.serve[1]), args.tokenizer))
        return 0
    return report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write the shards, run all contenders on them, and compare."""
    if args.json is not None:
        check_writable(args.json)
    if not args.texts:
        raise ConfigError("--texts names no file; give texts to tokenize")
    load_tokenizer(args.tokenizer)  # a mistake is told before the contenders start
    folder = Path(tempfile.mkdtemp(prefix="tokenization-"))
    try:
        n_bytes, n_documents = write_shards(folder, args.texts, int(args.megabytes * 1e6))
        command = [sys.executable, "-m", "benchmarks.tokenization", "--tokenizer", str(args.tokenizer)]
        commands = {name: [*command, "--serve", name, str(folder)] for name in CONTENDERS}
        rounds = alternate(commands, rounds=args.rounds, threads=1, report=lambda line: print(line, flush=True))
    finally:
        shutil.rmtree(folder)
    return compare(rounds, n_bytes=n_bytes, n_documents=n_documents)


def compare(rounds: list[dict[str, dict[str, Any]]], *, n_bytes: int, n_documents: int) -> dict[str, Any]:
    """Speeds and ratios; the number of tokens must be the same for all."""
    tokens = {answer["tokens"] for answers in rounds for answer in answers.values()}
    if len(tokens) != 1:
        raise ConfigError(f"the contenders found different numbers of tokens: {sorted(tokens)}")
    seconds = {name: [answers[name]["elapsed_s"] for answers in rounds] for name in CONTENDERS}
    cpu = {name: [answers[name]["cpu_s"] for answers in rounds] for name in CONTENDERS[:4]}  # of one process
    return {
        "benchmark": "tokenization",
        "processor": processor(),
        "rounds": len(rounds),
        "bytes": n_bytes,
        "documents": n_documents,
        "tokens": tokens.pop(),
        "megabytes_per_s": {name: n_bytes / 1e6 / statistics.median(spans) for name, spans in seconds.items()},
        "encode_against": speed_ratios({name: seconds[name] for name in CONTENDERS[:3]}, "encode"),
        "stage_against": speed_ratios({name: seconds[name] for name in CONTENDERS[:4]}, "stage"),
        "two_workers_against_one": speed_ratios({name: seconds[name] for name in ("stage_1", "stage_2")}, "stage_2"),
        # The same by processor time, which a busy machine disturbs less.
        "encode_against_by_cpu": speed_ratios({name: cpu[name] for name in CONTENDERS[:3]}, "encode"),
        "stage_against_by_cpu": speed_ratios(cpu, "stage"),
    }


def contender(name: str, folder: Path, tokenizer_path: Path) -> Callable[[], dict[str, Any]]:
    """A function that does one contender's round."""
    shards = sorted(folder.glob("*.jsonl.zst"))
    if name == "stage":
        out = Path(tempfile.mkdtemp(dir=folder))
        tokenize((shards[0], tokenizer_path, out))  # loads the tokenizer, as the others have done before they start
        return lambda: {"tokens": sum(tokenize((shard, tokenizer_path, out)) for shard in shards)}
    if name.startswith("stage_"):
        workers = LocalWorkers(int(name.removeprefix("stage_")))
        out = Path(tempfile.mkdtemp(dir=folder))
        jobs = [(shard, tokenizer_path, out) for shard in shards]
        run = lambda: {"tokens": sum(tokens for _, tokens in workers.run(tokenize, jobs))}  # noqa: E731
        run()  # starts the processes and their imports
        return run
    texts = [document.text for shard in shards for document in read_shard(shard)]
    tokenizer = load_tokenizer(tokenizer_path)
    model = tokenizer._model  # the very tiktoken.Encoding
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: tokenizer.encode_arrays(texts),
        "encode_ordinary": lambda: [model.encode_ordinary(text) for text in texts],
        "encode_ordinary_batch": lambda: model.encode_ordinary_batch(texts, num_threads=1),
    }
    return lambda: {"tokens": sum(map(len, calls[name]()))}


def tokenize(job: tuple[Path, Path, Path]) -> int:
    """The stage on one shard; its tokens without the ends of documents."""
    shard, tokenizer_path, out = job
    facts = tokenize_shard(_SPLIT, (shard, tokenizer_path), (out / f"{shard.name}.tokens", out / f"{shard.name}.npy"))
    return sum(split["tokens"] - split["documents"] for split in facts.facts.values())


def write_shards(folder: Path, paths: list[Path], n_bytes: int) -> tuple[int, int]:
    """(bytes, documents) of about `n_bytes` of text from the files, over and over, in shards."""
    documents = list(itertools.chain.from_iterable(map(read_texts, paths)))
    if not documents:
        raise ConfigError(f"--texts {paths[0]} holds no text")
    written = n_documents = 0
    endless = itertools.cycle(documents)
    for number in range(_SHARDS):
        with write_shard(folder / f"{number}.jsonl.zst") as write:
            while written < n_bytes * (number + 1) / _SHARDS:
                document = Document(f"document-{n_documents}", next(endless))
                write(document)
                written += document.n_bytes
                n_documents += 1
    return written, n_documents


def read_texts(path: Path) -> Iterator[str]:
    """The texts of one file."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        for line in content.splitlines():
            yield json.loads(line)["text"]
        return
    text = content.decode("utf-8")
    for start in range(0, len(text), _DOCUMENT_CHARACTERS):
        yield text[start : start + _DOCUMENT_CHARACTERS]


if __name__ == "__main__":
    sys.exit(main())
