"""Evaluation text taken out of documents: MB/s on one core beside lm-evaluation-harness's janitor, and what is missed.

    python benchmarks/decontamination.py [--json FILE] [--rounds N] [--documents 1500] [--text FILE --examples FILE]

Both get the same documents, in memory, and the same examples; some documents hold one, in four ways. Without files,
the words are drawn from a seeded vocabulary. The last line printed is one JSON object. Needs extras `data` and `eval`.
"""

import argparse
import contextlib
import io
import random
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side

from data_prep.decontamination.decontaminate import DecontaminateConfig, cut
from data_prep.decontamination.ngrams import GramIndex, find_in_each, find_known, join, plain, scan_grams
from data_prep.documents.shards import Document
from gpt.errors import ConfigError

CONTENDERS = ("triaxial", "janitor")
_DOCUMENT_WORDS = 700
_BATCH = 16  # documents at once, as the stage's batches are


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--text", type=Path, help="text whose words make the documents")
    parser.add_argument("--examples", type=Path, help="text whose lines of more than 30 words are the examples")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return side_by_side.report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    if args.documents < 100 or args.rounds < 1:
        raise ConfigError(f"--documents {args.documents} must be at least 100, --rounds {args.rounds} at least 1")
    if args.serve is not None:
        side_by_side.serve(lambda: contender(args))
        return None
    if args.json is not None:
        side_by_side.check_writable(args.json)
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in CONTENDERS}
    answers = side_by_side.alternate(
        commands, rounds=args.rounds, threads=1, report=lambda text: print(text, flush=True)
    )
    cpu_s = {name: [answer[name]["cpu_s"] for answer in answers] for name in CONTENDERS}
    last = answers[-1]
    result = {
        "benchmark": "decontamination",
        "documents": args.documents,
        "bytes": last["triaxial"]["bytes"],
        "examples": last["triaxial"]["examples"],
        "rounds": args.rounds,
        "mb_per_s": {name: last[name]["bytes"] / 1e6 / statistics.median(cpu_s[name]) for name in CONTENDERS},
        "cpu_ratios": side_by_side.speed_ratios(cpu_s, "triaxial"),
        "planted": {name: last[name]["planted"] for name in CONTENDERS},
        "machine": side_by_side.processor(),
        "versions": {name: version(name) for name in ("numpy", "lm-eval")},
    }
    for name in CONTENDERS:
        print(f"{name:10}{result['mb_per_s'][name]:>8.1f} MB/s on one core")
    print("\nplanted examples: cut out and the rest kept / still there / the whole document gone")
    for way in last["triaxial"]["planted"]:
        print(
            f"  {way:20}" + "".join(f"  {name} {'/'.join(map(str, last[name]['planted'][way]))}" for name in CONTENDERS)
        )
    return result


def contender(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    examples, documents, planted = make_input(args)
    clean = ours(examples) if args.serve == "triaxial" else janitor(examples)
    n_bytes = sum(len(text.encode()) for text in documents)

    def block() -> dict[str, Any]:
        left = clean(documents)
        outcome: dict[str, list[int]] = {}
        for number, (way, remains) in planted.items():
            kept = " ".join(" ".join(left[number]).lower().split())
            place = 2 if not left[number] else 1 if remains in kept else 0
            outcome.setdefault(way, [0, 0, 0])[place] += 1
        return {"bytes": n_bytes, "examples": len(examples), "planted": outcome}

    return block


def make_input(args: argparse.Namespace) -> tuple[list[str], list[str], dict[int, tuple[str, str]]]:
    """(examples, documents, {document: (the way in which an example was planted, words that must not remain)})."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghiklmnoprstuvw", k=rng.randrange(2, 10))) for _ in range(20_000)]
    words = args.text.read_text(encoding="utf-8").split() if args.text else rng.choices(vocabulary, k=10**6)
    lines = args.examples.read_text(encoding="utf-8").split("\n") if args.examples else []
    # Without punctuation, so that what the two make of it in an example plays no part.
    examples = [line for line in map(plain, lines) if line.count(" ") >= 30][:2000] or [
        " ".join(rng.choices(vocabulary, k=40)) for _ in range(2000)
    ]
    documents, planted = [], {}
    for number in range(args.documents):
        start = rng.randrange(len(words) - _DOCUMENT_WORDS)
        own = words[start : start + _DOCUMENT_WORDS]
        if number % 10 == 0:
            part = rng.choice(examples).split()
            way = ("13 words", "23 words", "dashes between", "capitals")[number // 10 % 4]
            part = part[: 13 if way == "13 words" else 23]
            shown = " - ".join(part) if way == "dashes between" else " ".join(part)
            own[_DOCUMENT_WORDS // 2 : _DOCUMENT_WORDS // 2] = [shown.upper() if way == "capitals" else shown]
            planted[number] = (way, (" - " if way == "dashes between" else " ").join(part[:13]).lower())
        documents.append(" ".join(own))
    return examples, documents, planted


def ours(examples: list[str]) -> Callable[[list[str]], list[list[str]]]:
    """What the search and cut stages do, without their files."""
    config = DecontaminateConfig()
    index = GramIndex.of(np.unique(join([join(scan_grams(text, (13,))) for text in examples]).numbers))

    def clean(documents: list[str]) -> list[list[str]]:
        left = [[text] for text in documents]
        for start in range(0, len(documents), _BATCH):
            rows, _ = find_in_each(documents[start : start + _BATCH], index, (13,))
            for row in set(rows.tolist()):
                document = Document("", documents[start + row])
                parts = cut(document, find_known(document.text, index, (13,)), config.window_characters)
                long = [part.text for part in parts if len(part.text) >= config.min_piece_characters]
                left[start + row] = long if len(parts) <= config.max_pieces else []
        return left

    return clean


def janitor(examples: list[str]) -> Callable[[list[str]], list[list[str]]]:
    """The harness's program in Python; its C++ part never looks into the set of registered grams."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from lm_eval.decontamination.janitor import Janitor
    program = Janitor()
    for text in examples:
        program.register_contaminant_python(text)
    return lambda documents: [program.clean_python(text) for text in documents]


if __name__ == "__main__":
    sys.exit(main())
