"""How long a killed run of a ~100M model on two processes takes from its new start to the end of its first step, by
phase, beside plain torch that loads the same tensors with torch.distributed.checkpoint, alternating in one run.

    python benchmarks/resume_time.py [--rounds N] [--directory DIR] [--json FILE]

The phases are those of the run's own ledger of time; "launching" goes from the command to the start of rank 0. What a
save in the background costs comes from the run's own events. Files are in the page cache for both. The last line
printed is one JSON object. docs/results/reliability/goodput.md has the figures.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import numpy as np
import side_by_side
import torch

from gpt.errors import ConfigError
from gpt.telemetry.goodput import ProcessTime, read_account
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import train_sentencepiece
from launch.config.run_config import read_run_config
from launch.processes.environment import CPU_MEMORY_SETTINGS
from launch.reports.facts import start_up_medians

HERE = Path(__file__).resolve().parent
PROCESSES, VOCAB = 2, 512
STEP_TOKENS, STEPS, SAVE_EVERY = 128, 7, 2  # a small step: what counts is what comes before it
PATIENCE_S = 600.0
ENVIRONMENT = {**os.environ, **CPU_MEMORY_SETTINGS, "OMP_NUM_THREADS": "1"}
RECIPE = f"""
[run]
directory = "{{folder}}/run"
device = "cpu"
peak_flops_per_s = 1e12  # known, as it is of a GPU; on a CPU it is else measured at every start
[model]
vocab_size = 50257
n_ctx = 1024
n_layers = 12
d_model = 768
n_heads = 12
[data]
tokenizer = "{{folder}}/topics.model"
seq_len = 64
train = [{{{{ path = "{{folder}}/train" }}}}]
[batch]
micro_batch_size = 1
global_batch_tokens = {STEP_TOKENS}
[optimizer]
learning_rate = 6e-4
[schedule]
warmup_tokens = 1000
decay_tokens = 1000000
[parallel]
data = {PROCESSES}
zero_stage = 3
precision = "fp32"
[train]
total_tokens = {STEPS * STEP_TOKENS}
[checkpoint]
every_tokens = {SAVE_EVERY * STEP_TOKENS}
keep_last = 1
[metrics]
wandb = "disabled"
"""


def prepare(folder: Path) -> Path:
    """Random tokens, a tokenizer and the recipe."""
    train_sentencepiece(iter(topics.values()), folder / "topics.model", vocab_size=VOCAB)
    with TokenFileWriter(folder / "train", vocab_size=VOCAB) as writer:
        writer.add_document(np.random.default_rng(0).integers(2, VOCAB, 100_000))
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def train(recipe: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.main", "train", str(recipe), "--nproc", str(PROCESSES), *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=sys.stderr, text=True, start_new_session=True)


def end(process: subprocess.Popen[str]) -> None:
    """Kill it outright, where it has not ended; its ranks die with it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def first_run(recipe: Path, run: Path) -> dict[str, float]:
    """Train until there is something to resume from; the medians of the saves beside training."""
    process = train(recipe)
    try:
        if process.wait() != 0:
            raise ConfigError("the run to be resumed failed; what it said is above")
    finally:
        end(process)
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    saves = [event for event in events if event["kind"] == "checkpoint_saved" and "stall_s" in event]
    return {key: median(save[key] for save in saves) for key in ("stall_s", "write_s", "bytes")} | {"saves": len(saves)}


def restart(recipe: Path, run: Path) -> dict[str, Any]:
    """Start the run again, and kill it outright after its first step; what its ledger says of that."""
    before = read_account(run / "ledger.jsonl")
    assert before is not None
    began_time = time.time()
    process = train(recipe, "--train.total_tokens", 10**9, "--checkpoint.every_tokens", 10**9)
    try:
        own = wait_for_first_step(run, processes=len(before.processes) + 1, of=process)
    finally:
        end(process)
    phases = {"launching": own.started_time - began_time, **start_up_medians([own])}
    return {"phases_s": phases, "total_s": sum(phases.values())}


def wait_for_first_step(run: Path, *, processes: int, of: subprocess.Popen[str]) -> ProcessTime:
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at:
        account = read_account(run / "ledger.jsonl")
        if account is not None and len(account.processes) == processes:
            newest = account.processes[-1]
            if newest.first_step_s is not None:
                return newest
        if of.poll() is not None:
            break
        time.sleep(0.05)
    raise ConfigError(f"the restarted run took no step within {PATIENCE_S:.0f} s; what it said is above")


def peer(recipe: Path, folder: Path, what: str) -> dict[str, Any]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    began_time = time.time()
    done = subprocess.run(
        [*torchrun, str(HERE / "resume_peer.py"), str(recipe), str(folder), what],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ConfigError("the peer failed; what it said is above")
    if what == "save":
        return {}
    told = json.loads(done.stdout.splitlines()[-1])
    phases = {"launching": told["ended_time"] - told["lived_s"] - began_time, **told["phases_s"]}
    return {"phases_s": phases, "total_s": sum(phases.values())}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in rounds for name in one["phases_s"])
    phases = {name: median(one["phases_s"].get(name, 0.0) for one in rounds) for name in names}
    totals = [one["total_s"] for one in rounds]
    return {"phases_s": phases, "total_s": median(totals), "least_s": min(totals), "greatest_s": max(totals)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.json is not None:
        side_by_side.check_writable(args.json)
    folder = Path(tempfile.mkdtemp(prefix="resume_time_", dir=args.directory))
    try:
        recipe = prepare(folder)
        run, stored = folder / "run", folder / "peer"
        save = first_run(recipe, run)
        peer(recipe, stored, "save")
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        for i in range(args.rounds):
            turns = [
                lambda: ours.append(restart(recipe, run)),
                lambda: theirs.append(peer(recipe, stored, "resume")),
            ]
            for turn in turns if i % 2 == 0 else reversed(turns):
                turn()
            for name, one in (("ours", ours[-1]), ("torch with DCP", theirs[-1])):
                told = ", ".join(f"{phase} {s:.1f}" for phase, s in one["phases_s"].items())
                print(f"round {i + 1} of {args.rounds}: {name} {one['total_s']:.1f} s ({told})", file=sys.stderr)
        totals = {"ours": [one["total_s"] for one in ours], "peer": [one["total_s"] for one in theirs]}
        (checkpoint,) = (run / "checkpoints").iterdir()
        return {
            "benchmark": "resume_time",
            "machine": f"{os.cpu_count()} x {side_by_side.processor()}",
            "load_average": os.getloadavg()[1],
            "torch": torch.__version__,
            "processes": PROCESSES,
            "parameters": read_run_config(str(recipe), []).model.parameters,
            "checkpoint_bytes": sum(file.stat().st_size for file in checkpoint.iterdir()),
            "rounds": args.rounds,
            "ours": medians(ours),
            "torch with DCP": medians(theirs),
            "times_as_fast": side_by_side.speed_ratios(totals, "ours")["peer"],
            "save": save,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where about 3 GB are free (default: the temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    args = parser.parse_args()
    return side_by_side.report_result(lambda: measure(args), args.json)


if __name__ == "__main__":
    raise SystemExit(main())
