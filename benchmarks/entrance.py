"""A stranger's way from a fresh clone to the first loss on one text file: seconds, commands, lines edited.

    python benchmarks/entrance.py shakespeare.txt [--nanogpt FOLDER] [--litgpt PYTHON --tokenizer FOLDER] [--rounds 5]

Each round makes a fresh copy of this checkout and runs `triaxial init`, `prepare` and `train` with default settings,
until `train` prints its first loss; and once more by `triaxial init --train`, which does all three. Python and its
packages are installed already: the interpreter that runs this script is used. With `--nanogpt`, a checkout of nanoGPT
does the same job in the same rounds, by the commands of its README for a computer without a GPU: the text is copied to
where its script looks for it, as characters instead of byte pairs. With `--litgpt`, the Python of an environment with
litgpt, so does litgpt, by its README's way to pretrain on one's own texts, with its smallest model. That way begins
with `litgpt download`, for a tokenizer. Here the folder of a tokenizer is copied instead, which needs no network and
less time. The models are not the same, so only the way to the first loss is compared.

The output has the seconds of each command and their sum, as wall time and as processor time of all its processes. Its
last line is JSON: the medians of the sums, and each peer's divided by ours.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_LOSS = re.compile(r"^(?:step\b|iter |Epoch )\D*\d.*\bloss (?:train: )?\s*\d")
NANOGPT = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
LITGPT = (
    "-m litgpt pretrain pythia-14m --tokenizer_dir tokenizer --data TextFiles --data.train_data_path texts "
    "--train.max_tokens 10_000_000 --train.global_batch_size 8 --train.micro_batch_size 4 --train.log_interval 1 "
    "--out_dir out"
)  # its default is 512 sequences a step, whose first loss takes this CPU minutes
# litgpt wants two files at least: it keeps the first one for validation.
SPLIT = (
    "import pathlib, sys; text = pathlib.Path(sys.argv[1]).read_text(); folder = pathlib.Path('texts'); "
    "folder.mkdir(); "
    "cut = len(text) // 10; (folder / 'a.txt').write_text(text[:cut]); (folder / 'b.txt').write_text(text[cut:])"
)
LIMIT_S = 1500.0


@dataclass(frozen=True)
class Way:
    """Commands in order, the last of which trains. `lines_edited`: that a person must write or change before."""

    python: str

    name: str
    commands: tuple[tuple[str, ...], ...]
    lines_edited: int
    setup: Callable[[Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="one text file, such as tinyshakespeare.txt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--litgpt", metavar="PYTHON", help="the Python of an environment with litgpt")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json and its configuration, for litgpt")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ways = [triaxial(args.text.resolve()), triaxial_at_once(args.text.resolve())]
    if args.nanogpt is not None:
        ways.append(nanogpt(args.text.resolve(), args.nanogpt.resolve()))
    if args.litgpt is not None:
        ways.append(litgpt(args.text.resolve(), args.litgpt, args.tokenizer.resolve()))
    seconds: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    cpu_seconds: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    for number in range(args.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            times, cpu_times = run(way)
            seconds[way.name].append(times)
            cpu_seconds[way.name].append(cpu_times)
            print(
                f"round {number + 1}: {way.name}: {' + '.join(f'{t:.1f}' for t in times)} = {sum(times):.1f} s, "
                f"processor {' + '.join(f'{t:.1f}' for t in cpu_times)} = {sum(cpu_times):.1f} s, "
                f"load {os.getloadavg()[0]:.0f}",
                flush=True,
            )
    for way in ways:
        each = [statistics.median(column) for column in zip(*seconds[way.name], strict=True)]
        names = ", ".join(f"{command[0]} {t:.1f} s" for command, t in zip(way.commands, each, strict=True))
        total = statistics.median(map(sum, seconds[way.name]))
        print(f"{way.name}: first loss after {total:.1f} s ({names})")
        cpu = [statistics.median(column) for column in zip(*cpu_seconds[way.name], strict=True)]
        print(f"{way.name}: processor {sum(cpu):.1f} s ({' + '.join(f'{t:.1f}' for t in cpu)})")
        print(f"{way.name}: {len(way.commands)} commands, {way.lines_edited} lines edited")
    print(json.dumps({"wall": summary(seconds), "processor": summary(cpu_seconds)}))


def summary(seconds: dict[str, list[list[float]]]) -> dict[str, object]:
    """Medians of the sums, and the median, least and largest ratio of a peer to us in the same round."""
    sums = {name: [sum(times) for times in rounds] for name, rounds in seconds.items()}
    ours, *peers = sums
    ratios = {name: [theirs / own for theirs, own in zip(sums[name], sums[ours], strict=True)] for name in peers}
    return {
        "seconds": seconds,
        "medians": {name: statistics.median(values) for name, values in sums.items()},
        "ratios": {name: [statistics.median(each), min(each), max(each)] for name, each in ratios.items()},
    }


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
    return Way(sys.executable, "triaxial", commands, 0, clone)


def triaxial_at_once(text: Path) -> Way:
    """The same in one command."""
    command = ("init --train", "-m", "launch.main", "init", str(text), "--train")
    return Way(sys.executable, "triaxial init --train", (command,), 0, triaxial(text).setup)


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
    return Way(sys.executable, "nanoGPT", commands, 0, copy)


def litgpt(text: Path, python: str, tokenizer: Path) -> Way:
    """Split the text, get a tokenizer, train."""
    commands = (
        ("split", "-c", SPLIT, str(text)),
        ("tokenizer", "-c", "import shutil, sys; shutil.copytree(sys.argv[1], 'tokenizer')", str(tokenizer)),
        ("pretrain", *LITGPT.split()),
    )
    return Way(python, "litgpt", commands, 0, lambda folder: (folder / "clone").mkdir())


def run(way: Way) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of each command in a new folder, the last one up to its first loss."""
    with tempfile.TemporaryDirectory(prefix="entrance-") as name:
        way.setup(Path(name))
        folder = Path(name) / "clone"
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        times, cpu_times = [], []
        for number, (_, *words) in enumerate(way.commands):
            started_at = time.monotonic()
            process = subprocess.Popen(
                [way.python, *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            ended = until(process, started_at, first_loss=number == len(way.commands) - 1)
            times.append(ended[0])
            cpu_times.append(ended[1])
        return times, cpu_times


def processor_s(session: int) -> float:
    """Processor seconds of the processes of a session that still run, and of those for which they have waited."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def until(process: "subprocess.Popen[str]", started_at: float, *, first_loss: bool) -> tuple[float, float]:
    """Wall and processor seconds until a process ends, or prints its first loss, after which its session is killed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if first_loss and FIRST_LOSS.match(line):
            elapsed_s, cpu_s = time.monotonic() - started_at, processor_s(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return elapsed_s, cpu_s
        if time.monotonic() - started_at > LIMIT_S:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"no end within {LIMIT_S:.0f} s: {lines[-1]}")
    if process.wait() or first_loss:
        raise SystemExit(f"{' '.join(map(str, process.args))}: status {process.returncode}\n{''.join(lines[-20:])}")
    elapsed_s, after = time.monotonic() - started_at, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
