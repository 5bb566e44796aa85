"""Opening a mixture, reading batches and the order of an epoch, beside Megatron-core's datasets on the same files.

    python benchmarks/data_loading.py [--json FILE] [--rounds 5] [--peer none] [--folder DIR]

The files described as 300 billion and 10 trillion tokens are sparse: every length, offset and read is real, and every
token is 0. The last line printed is one JSON object. The peer needs the extra `megatron`.
docs/results/data/data_loading.md explains the figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_loading_files as files
import data_loading_parts as parts
import side_by_side

from gpt.errors import ConfigError

LARGE_DOCUMENT = 1 << 30  # tokens: an index of 10 trillion tokens then fits a laptop
DOCUMENT = 750  # tokens, as web documents have
DESCRIBED = {"300B": 300_000_000_000, "10T": 10_000_000_000_000}


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=["megatron", "none"], default="megatron")
    parser.add_argument("--peer-tokens", type=int, default=16_000_000_000, help="of the mixture that both open")
    parser.add_argument("--peer-largest-tokens", type=int, default=0, help="and once more, of so many")
    parser.add_argument("--batch", type=int, default=8, help="sequences of 2,048 tokens in a batch")
    parser.add_argument("--file-tokens", type=int, default=100_000_000, help="length of the file that is read from")
    parser.add_argument("--folder", type=Path, help="keep the token files there (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--prefix", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--document-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("serve", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1 or args.batch < 1:
        parser.error("--rounds and --batch must be at least 1")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The whole comparison; as a child process one part of it, which prints its own answer."""
    if args.part == "batches":
        side_by_side.serve(lambda: parts.batches(args.who, args.prefix, args.folder, args.batch))
        return None
    if args.part is not None:
        print(json.dumps(parts.PARTS[args.part](args)))
        return None
    if args.json is not None:
        side_by_side.check_writable(args.json)
    if args.folder is not None:
        return compare(args, args.folder)
    with tempfile.TemporaryDirectory(prefix="data_loading_") as folder:
        return compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    peer = args.peer == "megatron"
    report = lambda text: print(text, flush=True)  # noqa: E731
    full = folder / "full"
    report("writing token files")
    files.full_corpus(full, args.file_tokens)
    result: dict[str, Any] = {
        "benchmark": "data_loading",
        "processor": side_by_side.processor(),
        "rounds": args.rounds,
        "seq_len": files.SEQ_LEN,
        "batch": args.batch,
        "open": opening(args, folder, peer, report),
        "read_10T": reading_described(args, folder, peer, report),
        "cold": cold(args, full, peer, report),
        "warm": warm(args, full, peer, report),
        "epoch": child(["--part", "epoch", "--who", "megatron" if peer else "none", "--folder", str(folder)]),
    }
    show(result)
    return result


def opening(args: argparse.Namespace, folder: Path, peer: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Seconds from opening to the first batch and the memory it took, each time in a fresh process."""

    def command(who: str, tokens: int, document: int) -> list[str]:
        where = ["--folder", str(folder), "--tokens", str(tokens), "--document-tokens", str(document)]
        return ["--part", "open", "--who", who, "--batch", str(args.batch), *where]

    commands = {f"triaxial {name}": command("ours", n, LARGE_DOCUMENT) for name, n in DESCRIBED.items()}
    commands["triaxial"] = command("ours", args.peer_tokens, DOCUMENT)
    if peer:  # the second start finds what the first has left
        commands["megatron first start"] = command("megatron", args.peer_tokens, DOCUMENT)
        commands["megatron later start"] = command("megatron_cached", args.peer_tokens, DOCUMENT)
    result = {"tokens": args.peer_tokens, **alternate_fresh(commands, args.rounds, report)}
    result["10T/300B"] = ratios(result["triaxial 10T"], result["triaxial 300B"])
    if peer:
        result["megatron first start/triaxial"] = ratios(result["megatron first start"], result["triaxial"])
        result["megatron later start/triaxial"] = ratios(result["megatron later start"], result["triaxial"])
    if peer and args.peer_largest_tokens:
        tokens = args.peer_largest_tokens
        largest = {
            "triaxial": command("ours", tokens, DOCUMENT),
            "megatron first start": command("megatron", tokens, DOCUMENT),
        }
        result["largest"] = {"tokens": tokens, **alternate_fresh(largest, 1, report)}
    return result


def reading_described(
    args: argparse.Namespace, folder: Path, peer: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Time and memory of further random samples of the 10 trillion tokens."""
    common = ["--folder", str(folder), "--tokens", str(DESCRIBED["10T"]), "--document-tokens", str(LARGE_DOCUMENT)]
    names = ["triaxial", *(["megatron"] if peer else [])]
    return alternate_fresh({name: ["--part", "read", "--who", name, *common] for name in names}, 1, report)


def cold(args: argparse.Namespace, full: Path, peer: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """The first samples out of a file of which nothing is in memory."""
    names = ["triaxial", "triaxial_unchecked", *(["megatron", "megatron_unmapped"] if peer else [])]
    common = ["--prefix", str(full), "--folder", str(full.parent), "--batch", str(args.batch)]
    return alternate_fresh({name: ["--part", "cold", "--who", name, *common] for name in names}, args.rounds, report)


def warm(args: argparse.Namespace, full: Path, peer: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Batches/s out of a file that is in memory, by sequences in a batch: `--batch`, and four times as many."""
    names = ["triaxial", "triaxial_unchecked", *(["megatron", "megatron_tokens_only"] if peer else [])]
    result = {}
    for n in (args.batch, 4 * args.batch):
        common = ["--part", "batches", "--prefix", str(full), "--folder", str(full.parent), "--batch", str(n)]
        commands = {name: [sys.executable, __file__, *common, "--who", name, "serve"] for name in names}
        rounds = side_by_side.alternate(commands, rounds=args.rounds, threads=1, report=report)
        spans = {name: [r[name]["elapsed_s"] / r[name]["batches"] for r in rounds] for name in names}
        cpu_us = {name: [r[name]["cpu_s"] / r[name]["batches"] / n * 1e6 for r in rounds] for name in names}
        batches_per_s = {name: 1 / statistics.median(values) for name, values in spans.items()}
        result[str(n)] = {
            "batches_per_s": batches_per_s,
            "tokens_per_s": {name: speed * n * files.SEQ_LEN for name, speed in batches_per_s.items()},
            "ratios": side_by_side.speed_ratios(spans, "triaxial"),
            "cpu_us_a_sample": {name: statistics.median(values) for name, values in cpu_us.items()},
        }
    return result


def alternate_fresh(commands: dict[str, list[str]], rounds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Medians of what fresh processes measure, in turn; the order rotates from round to round."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    names = list(commands)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            answers[name].append(child(commands[name]))
        spans = ", ".join(f"{name} {answers[name][-1]['seconds']:.4f} s" for name in names)
        report(f"round {i + 1} of {rounds}: {spans}")
    return {
        name: {key: statistics.median(answer[key] for answer in given) for key in given[0]}
        for name, given in answers.items()
    }


def child(words: list[str]) -> dict[str, Any]:
    """What a process of its own prints last."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(words)} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ratios(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {key: one[key] / other[key] for key in one if other[key]}


def show(result: dict[str, Any]) -> None:
    print(f"\nopening to the first batch, medians of {result['rounds']}")
    for name, values in result["open"].items():
        if isinstance(values, dict) and "seconds" in values and "/" not in name:
            times = f"{values['seconds'] * 1e3:>12,.2f} ms{values['cpu_seconds'] * 1e3:>12,.2f} ms of processor"
            print(f"  {name:24}{times}{values['peak_bytes'] / 2**20:>10,.1f} MiB")
    for name, values in result["open"].get("largest", {}).items():
        if isinstance(values, dict):
            print(f"  {'at the largest: ' + name:36}{values['seconds']:,.2f} s {values['peak_bytes'] / 2**20:,.0f} MiB")
    for part in ("read_10T", "cold"):
        print({"read_10T": "\nsamples of 10T tokens", "cold": "\nsamples that are not in memory"}[part])
        for name, values in result[part].items():
            print(f"  {name:24}" + "  ".join(f"{key} {value:,.4g}" for key, value in values.items()))
    for n, speeds in result["warm"].items():
        print(f"\nbatches/s of {n} x {result['seq_len']}, file in memory")
        for name, speed in speeds["batches_per_s"].items():
            ratio = speeds["ratios"].get(name)
            beside = "" if ratio is None else f"   ours/its {ratio['of_medians']:.2f}"
            cpu_us = speeds["cpu_us_a_sample"][name]
            print(f"  {name:24}{speed:>10,.0f}{beside}   {cpu_us:.1f} us of processor a sample")
    print("\nafter one epoch's worth of tokens in a run of three epochs")
    for name, values in result["epoch"].items():
        print(f"  {name:24}" + "  ".join(f"{key} {share:.2%}" for key, share in values.items()))
    print()


if __name__ == "__main__":
    sys.exit(main())
