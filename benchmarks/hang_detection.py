"""How soon a hung rank is found, rightly named and ended, beside torch.distributed's own time-out; trains a tiny model.

    python benchmarks/hang_detection.py [--hangs 20] [--timeout-s 20] [--jobs 1] [--json FILE]

Each hang is a launch of two real ranks (tests/launch/hang_program.py) on gloo: kinds and layouts in turn, rank and step
by chance. Spread among them are launches of the same program by torchrun without the watchdog, where the process
group's time-out is the same number of seconds: what torch does by itself.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "launch"
KINDS = ("loop", "gil", "stop", "data", "skip")
LAYOUTS = {"data 2": [], "tensor 2": ["--parallel.tensor", "2"], "pipeline 2": ["--parallel.pipeline", "2"]}
LAUNCH = """
import sys
from launch.processes.local_launch import launch_local
sys.exit(launch_local(2, sys.argv[1:], module="hang_program"))
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hang_program"]
RECIPE = """
[run]
seed = 3
device = "cpu"
peak_flops_per_s = 1e12
[model]
vocab_size = 512
n_ctx = 64
n_layers = 2
d_model = 32
n_heads = 2
[data]
tokenizer = "{folder}/topics.model"
seq_len = 64
train = [{{ path = "{folder}/train" }}]
[batch]
micro_batch_size = 2
global_batch_tokens = 512
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_tokens = 1024
decay_tokens = 20480
[parallel]
precision = "fp32"
[checkpoint]
every_tokens = 2048
[train]
total_tokens = 20480
[metrics]
wandb = "disabled"
"""


@dataclass(frozen=True)
class Hang:
    """What is done to one launch of two ranks."""

    watched: bool
    kind: str
    layout: str
    rank: int
    step: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hangs", type=int, default=20)
    parser.add_argument("--peers", type=int, default=5, help="launches without the watchdog")
    parser.add_argument("--timeout-s", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="launches at a time; they mostly wait")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    hangs = plan(args.hangs, args.peers, random.Random(args.seed))
    with tempfile.TemporaryDirectory(prefix="hang_detection_") as name:
        folder = Path(name)
        make_corpus(folder)
        with ThreadPoolExecutor(args.jobs) as pool:
            numbered = enumerate(hangs)
            found = list(pool.map(lambda item: one_hang(folder, item[0], item[1], timeout_s=args.timeout_s), numbered))
    result = {
        "benchmark": "hang_detection",
        "timeout_s": args.timeout_s,
        "jobs": args.jobs,
        "ours": summary([launch for launch in found if launch["watched"]], timeout_s=args.timeout_s),
        "torch_distributed": summary([launch for launch in found if not launch["watched"]], timeout_s=args.timeout_s),
        "launches": found,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def plan(hangs: int, peers: int, chance: random.Random) -> list[Hang]:
    """Kinds and layouts in turn, rank and step by chance; the peer's launches spread among ours."""
    planned, done = [], 0
    for number in range(hangs):
        turns = [(True, number)]
        if (number + 1) * peers // hangs > done:
            turns.append((False, done))
            done += 1
        for watched, turn in turns:
            kind, layout = KINDS[turn % len(KINDS)], list(LAYOUTS)[turn % len(LAYOUTS)]
            planned.append(Hang(watched, kind, layout, rank=chance.randrange(2), step=chance.randint(4, 14)))
    return planned


def make_corpus(folder: Path) -> None:
    """A tokenizer, a corpus and the recipe, from the help texts that ship with Python."""
    texts = [topics[name] for name in sorted(topics)]
    train_sentencepiece(iter(texts), folder / "topics.model", vocab_size=512)
    tokenizer = load_tokenizer(folder / "topics.model")
    with TokenFileWriter(folder / "train", vocab_size=512) as writer:
        for text in texts:
            writer.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder), encoding="utf-8")


def one_hang(corpus: Path, number: int, hang: Hang, *, timeout_s: int) -> dict[str, Any]:
    """One launch with one hang: what was done, and what was found of it after how long."""
    folder = corpus / f"launch{number}"
    folder.mkdir()
    words = [f"{hang.kind}:{hang.rank}:{hang.step}", "train", str(corpus / "recipe.toml")]
    words += ["--run.directory", str(folder / "run"), *LAYOUTS[hang.layout]]
    if hang.watched:
        words += ["--health.hang_timeout_s", str(timeout_s), "--health.first_step_timeout_s", "120"]
    else:
        words += ["--health.watchdog", "false", "--run.collective_timeout_s", str(timeout_s)]
    more = {"PYTHONPATH": f"{ROOT}:{PROGRAM}", "OMP_NUM_THREADS": "1", "TEST_OF_HANGS": str(folder)}
    more |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    start = ["-c", LAUNCH] if hang.watched else TORCHRUN
    with (folder / "said.txt").open("w", encoding="utf-8") as said:
        launcher = subprocess.Popen(
            [sys.executable, *start, *words], env={**os.environ, **more}, cwd=ROOT, stdout=said, stderr=said
        )
        gone_at = when_gone(launcher, folder)
    if not (folder / "fault").exists():
        print(f"{hang}: ended before its fault\n{(folder / 'said.txt').read_text(encoding='utf-8')}", file=sys.stderr)
        return {**asdict(hang), "named": None, "right": False, "ended_early": True}
    began_at = float((folder / "fault").read_text())
    named, told_at = what_was_told(folder, watched=hang.watched)
    found: dict[str, Any] = {**asdict(hang), "named": named, "right": named == [hang.rank]}
    found["gone_s"] = round(gone_at - began_at, 2)
    if told_at is not None:
        found["told_s"] = round(told_at - began_at, 2)
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def when_gone(launcher: "subprocess.Popen[bytes]", folder: Path) -> float:
    """The time at which the last of the ranks was gone, after the fault."""
    alive_at = 0.0
    while launcher.poll() is None:
        if (folder / "fault").exists() and any(lives(file) for file in folder.glob("rank*.pid")):
            alive_at = time.time()
        time.sleep(0.02)
    return alive_at


def lives(file: Path) -> bool:
    try:
        stat = Path("/proc", file.read_text(), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def what_was_told(folder: Path, *, watched: bool) -> tuple[list[int] | None, float | None]:
    """Which ranks the operator is pointed to, and when, where a file tells; without a watchdog torchrun tells."""
    if watched:
        for verdict in (folder / "run" / "hangs").glob("*/verdict.json"):
            return json.loads(verdict.read_text(encoding="utf-8"))["ranks"], verdict.stat().st_mtime
        return None, None
    said = (folder / "said.txt").read_text(encoding="utf-8")
    first = re.search(r"Root Cause.*?rank +: (\d+)", said, re.DOTALL)
    return ([int(first[1])] if first else None), None


def summary(launches: list[dict[str, Any]], *, timeout_s: int) -> dict[str, Any]:
    """Figures over launches; times also as multiples of the time-out."""
    found: dict[str, Any] = {
        "hangs": len(launches),
        "rightly_named": sum(launch["right"] for launch in launches),
        "rightly_named_and_gone_within_twice": sum(
            launch["right"] and launch["gone_s"] <= 2 * timeout_s for launch in launches
        ),
    }
    for key in ("told_s", "gone_s"):
        values = [launch[key] for launch in launches if key in launch]
        if values:
            median, most = statistics.median(values), max(values)
            found[key] = {"median": round(median, 2), "max": most}
            found[key.replace("_s", "_timeouts")] = {
                "median": round(median / timeout_s, 2),
                "max": round(most / timeout_s, 2),
            }
    return found


if __name__ == "__main__":
    main()
