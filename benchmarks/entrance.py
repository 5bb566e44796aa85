"""A stranger's way from a fresh clone to the first loss on one text file: seconds, commands, lines edited.

    python benchmarks/entrance.py shakespeare.txt [--nanogpt FOLDER] [--rounds 5]

Each round makes a fresh copy of this checkout and runs `triaxial init`, `prepare` and `train` with default settings,
until `train` prints its first loss. Python and its packages are installed already: the interpreter that runs this
script is used. With `--nanogpt`, a checkout of nanoGPT does the same job in the same rounds, by the commands of its
README for a computer without a GPU: the text is copied to where its script looks for it, as characters instead of byte
pairs. The two models are not the same, so only the way to the first loss is compared.

The output has the seconds of each command and their sum. Its last line is JSON: the medians of the sums, and the
peer's divided by ours.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_LOSS = re.compile(r"^(?:step\b|iter )\D*\d.*\bloss\s+\d")
NANOGPT = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
LIMIT_S = 600.0


@dataclass(frozen=True)
class Way:
    """Commands in order, the last of which trains. `lines_edited`: that a person must write or change before."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    lines_edited: int
    setup: Callable[[Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="one text file, such as tinyshakespeare.txt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ways = [triaxial(args.text.resolve())]
    if args.nanogpt is not None:
        ways.append(nanogpt(args.text.resolve(), args.nanogpt.resolve()))
    seconds: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    for number in range(args.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            times = run(way)
            seconds[way.name].append(times)
            print(
                f"round {number + 1}: {way.name}: {' + '.join(f'{t:.1f}' for t in times)} = {sum(times):.1f} s",
                flush=True,
            )
    for way in ways:
        each = [statistics.median(column) for column in zip(*seconds[way.name], strict=True)]
        names = ", ".join(f"{command[0]} {t:.1f} s" for command, t in zip(way.commands, each, strict=True))
        total = statistics.median(map(sum, seconds[way.name]))
        print(f"{way.name}: first loss after {total:.1f} s ({names})")
        print(f"{way.name}: {len(way.commands)} commands, {way.lines_edited} lines edited")
    totals = {name: statistics.median(map(sum, rounds)) for name, rounds in seconds.items()}
    ours, *theirs = totals.values()
    ratios = {name: round(value / ours, 2) for name, value in zip(list(totals)[1:], theirs, strict=True)}
    print(json.dumps({"seconds": seconds, "medians": totals, "ratios": ratios}))


def triaxial(text: Path) -> Way:
    """Init, prepare, train, as the README has them. A fresh clone has no compiled Python either."""

    def clone(folder: Path) -> None:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "clone")], check=True)

    module = ("-m", "launch.main")
    commands = (
        ("init", *module, "init", str(text)),
        ("prepare", *module, "prepare", f"runs/{text.stem}/data.toml"),
        ("train", *module, "train", f"runs/{text.stem}/train.toml"),
    )
    return Way("triaxial", commands, 0, clone)


def nanogpt(text: Path, checkout: Path) -> Way:
    """Copy the text, prepare, train. The copy counts as a command."""

    ignored = shutil.ignore_patterns(".git", "input.txt", "*.bin", "__pycache__")

    def copy(folder: Path) -> None:
        shutil.copytree(checkout, folder / "clone", ignore=ignored)

    to = "data/shakespeare_char/input.txt"
    commands = (
        ("copy", "-c", f"import shutil; shutil.copy({str(text)!r}, {to!r})"),
        ("prepare", "data/shakespeare_char/prepare.py"),
        ("train", *NANOGPT.split()),
    )
    return Way("nanoGPT", commands, 0, copy)


def run(way: Way) -> list[float]:
    """Return the seconds of each command, the last one up to its first loss, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="entrance-") as name:
        way.setup(Path(name))
        folder = Path(name) / "clone"
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        times = []
        for number, (_, *words) in enumerate(way.commands):
            started_at = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            times.append(until(process, started_at, first_loss=number == len(way.commands) - 1))
        return times


def until(process: "subprocess.Popen[str]", started_at: float, *, first_loss: bool) -> float:
    """Return the seconds until a process ends, or prints its first loss, after which it is killed."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if first_loss and FIRST_LOSS.match(line):
            elapsed_s = time.monotonic() - started_at
            process.kill()
            process.wait()
            return elapsed_s
        if time.monotonic() - started_at > LIMIT_S:
            process.kill()
            raise SystemExit(f"no end within {LIMIT_S:.0f} s: {lines[-1]}")
    if process.wait() or first_loss:
        raise SystemExit(f"{' '.join(map(str, process.args))}: status {process.returncode}\n{''.join(lines[-20:])}")
    return time.monotonic() - started_at


if __name__ == "__main__":
    main()
