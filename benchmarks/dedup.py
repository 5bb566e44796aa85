"""De-duplication against exact Jaccard similarity, its memory as the corpus grows, and its speed beside three peers.

    python benchmarks/dedup.py [--parts curve memory speed] [--texts ../shared/data] [--plot curve.png] [--json FILE]
    python benchmarks/dedup.py --parts memory --documents 10000 100000 1000000

`--texts` names a folder with texts; without it texts are generated. `speed` needs
datatrove, spacy, datasketch and rensa, for example from a folder of their own:

    pip install --target peers "datatrove[io,processing]" spacy datasketch rensa; PYTHONPATH=peers python benchmarks/...

The last line printed is one JSON object.
"""

import argparse
import gzip
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dedup_peers
import numpy as np
import side_by_side
from dedup_curve import measure_curve
from dedup_memory import measure_memory

from gpt.errors import ConfigError

PEERS = ("rensa", "datasketch", "datatrove_words", "datatrove")
OURS = "triaxial"
PARTS = ("curve", "memory", "speed")
WORDS_A_TEXT = 200


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """All parts asked for; None as a contender's own process."""
    if args.serve is not None:
        texts = read_texts(args.texts)[: args.speed_texts]
        with tempfile.TemporaryDirectory() as folder:
            side_by_side.serve(lambda: dedup_peers.contender(args.serve, texts, Path(folder)))
        return None
    if args.serve_memory is not None:
        print(json.dumps(measure_memory(*args.serve_memory)), flush=True)
        return None
    if args.json is not None:
        side_by_side.check_writable(args.json)
    if "speed" in args.parts:
        check_peers(args.peers)
    result: dict[str, Any] = {"processor": side_by_side.processor(), "texts": str(args.texts or "generated")}
    if "curve" in args.parts:
        result["curve"] = measure_curve(read_texts(args.texts), seed=args.seed, plot=args.plot)
    if "memory" in args.parts:
        result["memory"] = compare_memory(args)
    if "speed" in args.parts:
        result["speed"] = compare_speed(args)
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--texts", type=Path, default=None, metavar="FOLDER", help="real texts (default: generated)")
    parser.add_argument("--seed", type=int, default=0, help="draws the edits")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curve as a PNG (needs matplotlib)")
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000], help="sizes for memory")
    parser.add_argument("--methods", nargs="+", choices=("exact", "banded", "gpt3"), default=["banded"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed-texts", type=int, default=1000, help="texts that each contender signs")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--serve-memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def check_peers(names: list[str]) -> None:
    """ConfigError, before other parts take their time, when a peer is not installed."""
    for name in names:
        for module in {"datatrove_words": ["datatrove"], "datatrove": ["datatrove", "spacy"]}.get(name, [name]):
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"--peers {name}: the package '{module}' is not installed; see --help, or leave this peer out"
                )


def read_texts(folder: Path | None) -> list[str]:
    """Texts of some 200 words: pieces of real ones, or generated from words with Zipf's frequencies."""
    if folder is None:
        rng = np.random.default_rng(1)
        shares = 1 / np.arange(1, 50_001)
        numbers = rng.choice(50_000, (3000, WORDS_A_TEXT), p=shares / shares.sum())
        return [" ".join(f"w{number}" for number in row) for row in numbers.tolist()]
    if not folder.is_dir():
        raise ConfigError(f"--texts {folder}: no such folder; leave it out for generated texts")
    pieces = []
    for text in _whole_texts(folder):
        words = re.findall(r"\s*\S+", text)
        for start in range(0, len(words) - WORDS_A_TEXT + 1, WORDS_A_TEXT):
            pieces.append("".join(words[start : start + WORDS_A_TEXT]).strip())
    order = np.random.default_rng(1).permutation(len(pieces))
    return [pieces[i] for i in order]


def _whole_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("text/dolma*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
    yield from (
        page["articleBody"] for page in json.loads((folder / "html/aeb-ground-truth.json").read_text()).values()
    )
    for name in ("test", "valid"):
        yield from re.split(r"\n = ", (folder / f"text/wikitext2-{name}.txt").read_text(encoding="utf-8"))
    for name in ("inaugural", "state_union"):
        with zipfile.ZipFile(folder / f"text/nltk-{name}.zip") as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".txt"):
                    yield archive.read(member).decode("utf-8", "replace")


def compare_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Each size in a process of its own, with one worker; the largest peak over the smallest size's."""
    result: dict[str, Any] = {}
    print(
        f"\n{'method':<8}{'documents':>11}{'seconds':>9}{'docs/s':>9}{'worker MB':>11}{'caller MB':>11}{'disk MB':>12}"
    )
    for method in args.methods:
        rows = []
        for documents in args.documents:
            command = [sys.executable, __file__, "--serve-memory", str(documents), method]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(
                f"{method:<8}{documents:>11,}{row['elapsed_s']:>9.1f}{documents / row['elapsed_s']:>9,.0f}"
                f"{row['worker_peak_bytes'] / 1e6:>11.1f}{row['caller_peak_bytes'] / 1e6:>11.1f}"
                f"{row['disk_bytes'] / 1e6:>12,.1f}",
                flush=True,
            )
        growth = {
            kind: max(row[f"{kind}_peak_bytes"] for row in rows) / rows[0][f"{kind}_peak_bytes"]
            for kind in ("worker", "caller")
        }
        print(f"{method}: largest peak over that of {args.documents[0]:,} documents: {growth}")
        result[method] = {"sizes": rows, "growth": growth}
    return result


def compare_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Megabytes of text a second on one core, alternating; ratios of ours over each peer's."""
    names = [OURS, *args.peers]
    texts = read_texts(args.texts)[: args.speed_texts]
    n_bytes = sum(len(text.encode()) for text in texts)
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=1, report=report)
    for name in names:
        assert all(round_[name]["documents"] == len(texts) for round_ in answers), name
    result: dict[str, Any] = {"bytes": n_bytes, "documents": len(texts), "rounds": args.rounds}
    for clock in ("elapsed_s", "cpu_s"):
        spans = {name: [round_[name][clock] for round_ in answers] for name in names}
        result[f"mb_per_{clock}"] = {name: n_bytes / 1e6 / statistics.median(s) for name, s in spans.items()}
        result[f"ratios_{clock}"] = side_by_side.speed_ratios(spans, OURS)
    for name in names:
        ratio = result["ratios_cpu_s"].get(name, {}).get("paired_median", 1.0)
        print(f"{name:<16}{result['mb_per_cpu_s'][name]:>8.2f} MB/s of text and core; ours is {ratio:.1f} times that")
    return result


if __name__ == "__main__":
    sys.exit(main())
