"""Runs Triaxial's commands on copies of tests/fixtures/version_0_1 and collects what they say, through public files.

tests/fixtures/make_version_0_1.py records with the old version what tests/launch/test_version_before.py expects of the
new one. Both call `start`, and nothing of Triaxial is imported here, so the same code reads both versions.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "version_0_1"
TIMEOUT_S = 400  # of one command; far above what it takes

# Values of metrics.jsonl that do not follow from the recipe and the seed.
MEASURED = ("tokens_per_s", "step_s", "mfu", "peak_memory_bytes", "memory/", "goodput", "time/", "straggler/")
SUMMARY = ("step", "tokens_seen", "epochs", "ended", "skipped_steps", "rewinds", "parameters", "weights_sha256")

# Runs several commands as `python -m launch.main` would, but imports torch once. Prints the output of each as JSON.
SEVERAL_COMMANDS = """
import contextlib, io, json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv[1:], out = words, io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module("launch.main", run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"triaxial {' '.join(words)}: status {end.code}: {out.getvalue()}"
    print(json.dumps(out.getvalue()))
"""


@dataclass(frozen=True)
class Copy:
    """A copy of the fixture, on which the version in the checkout `code` runs."""

    folder: Path
    code: Path

    def run(self, *words: object, expect: int = 0) -> str:
        """One command; returns its output."""
        return self._start([sys.executable, "-m", "launch.main", *map(str, words)], expect=expect)

    def run_several(self, *commands: str) -> list[str]:
        """Several commands in one process; returns the output of each."""
        words = json.dumps([command.split() for command in commands])
        lines = self._start([sys.executable, "-c", SEVERAL_COMMANDS, words], expect=0).splitlines()
        return [json.loads(line) for line in lines]

    def _start(self, command: list[str], *, expect: int) -> str:
        # PYTHONPATH comes before what is installed, so this is the version in `code`.
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.code), "COLUMNS": "120"}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == expect, f"{command[1:]}: status {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@dataclass(frozen=True)
class Resume:
    """How a run goes on: the recipe and options of `triaxial train`, and whether the local tier is there."""

    recipe: str
    options: tuple[str, ...] = ()
    local_tier: bool = False


ON_FOUR = ("--nproc", "4", "--parallel.tensor", "2", "--parallel.pipeline", "2")
RESUMES = {
    "one": Resume("one.toml"),
    "one, from the local tier": Resume("one.toml", local_tier=True),
    "one, on tensor 2 x pipeline 2": Resume("one.toml", ON_FOUR),
    "four": Resume("four.toml", ("--nproc", "4")),
}


def start(pool: Executor, work: Path, code: Path) -> dict[str, Future[dict[str, Any]]]:
    """Have the version in `code` read the fixture and continue its runs, each job on its own copy in `work`."""
    jobs = {name: functools.partial(resume, how=how) for name, how in reversed(RESUMES.items())}  # the longest first
    jobs |= {"read": read_runs, "recipes": read_recipes}
    return {
        name: pool.submit(lambda job, i: job(make_copy(work / f"copy-{i}", code)), job, i)
        for i, (name, job) in enumerate(jobs.items())
    }


def make_copy(folder: Path, code: Path, source: Path = FIXTURE) -> Copy:
    """A new copy of the fixture. Its local tier lies apart, as `place_local_tier` expects."""
    shutil.copytree(source, folder)
    (folder / "fast").rename(folder / "fast-kept")
    (folder / "fast").mkdir()
    return Copy(folder, code)


def place_local_tier(copy: Copy) -> None:
    """Put the local tier where the run looks for it: the folder's name holds a digest of the run directory's path."""
    digest = hashlib.sha256(str(copy.folder / "one").encode()).hexdigest()
    shutil.copytree(copy.folder / "fast-kept" / "one", copy.folder / "fast" / f"one-{digest[:8]}")


def read_runs(copy: Copy) -> dict[str, Any]:
    """What the commands that read say of both runs: tensors, state, data of the next steps, losses, text, report."""
    audit_one, audit_four, later_epochs, text, *_ = copy.run_several(
        "data audit one --steps 7-12 --json",
        "data audit four --steps 7-10 --json",
        "data audit four --positions 500-520 --json",
        "generate four --prompt Each --temperature 1 --seed 5 --max-new-tokens 16 --device cpu",
        "convert one --to safetensors --output plain-one",
        "convert four --to safetensors --output plain-four",
        "evaluate one --tasks none --json evaluation-one.json --device cpu",
        "evaluate four --tasks none --json evaluation-four.json --device cpu",
        "report one --json report.json",
    )
    audits = {"one": audit_one, "four": audit_four, "four, later epochs": later_epochs}
    report = read_json(copy.folder / "report.json")
    return {
        "tensors": {run: tensor_digests(copy.folder / f"plain-{run}") for run in ("one", "four")},
        "state": {run: loop_state(copy.folder / f"plain-{run}" / "state.json") for run in ("one", "four")},
        "audit": {name: [source(line) for line in json_lines(audit)] for name, audit in audits.items()},
        "evaluation": {run: validation(copy.folder / f"evaluation-{run}.json") for run in ("one", "four")},
        "generation": text,
        "report": {key: report[key] for key in ("step", "tokens_seen", "loss", "validation_loss", "events", "problems")}
        | {"checkpoints": [stored["step"] for stored in report["checkpoints"]]},
    }


def read_recipes(copy: Copy) -> dict[str, Any]:
    """Recipes with every key are planned, and that of a corpus makes its files once more."""
    copy.run_several(
        "prepare verify guides",
        "prepare decisions.toml --workers 1",
        "prepare every_key_prepare.toml --dry-run",
        "train every_key.toml --dry-run --ranks 16",
    )
    files = sorted((copy.folder / "decisions").glob("*.[bis]*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def resume(copy: Copy, how: Resume) -> dict[str, Any]:
    """Train a run of the copy to its end: from which step, and what each step from there on recorded."""
    if how.local_tier:
        place_local_tier(copy)
    copy.run("train", how.recipe, "--resume", *how.options)
    run = copy.folder / how.recipe.removesuffix(".toml")
    events = json_lines((run / "events.jsonl").read_text())
    start = max(i for i, event in enumerate(events) if event["kind"] == "resumed")
    from_step = events[start]["step"]
    summary = read_json(run / "train_summary.json")
    return {
        "from_step": from_step,
        "steps": recorded_steps(run / "metrics.jsonl", after=from_step),
        "spikes": [event["step"] for event in events[start:] if event["kind"] == "spike"],
        "samples": [sample for sample in samples(run) if sample["step"] > from_step],
        "summary": {key: summary[key] for key in SUMMARY},
    }


def recorded_steps(path: Path, *, after: int) -> dict[str, dict[str, float]]:
    """The values of each step after `after`, without what is measured."""
    steps: dict[str, dict[str, float]] = {}
    for line in json_lines(path.read_text()):
        if line["step"] > after:
            values = {key: value for key, value in line.items() if key != "step" and not key.startswith(MEASURED)}
            steps.setdefault(str(line["step"]), {}).update(values)
    return steps


def samples(run: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl."""
    path = run / "samples.jsonl"
    return json_lines(path.read_text()) if path.exists() else []


def tensor_digests(plain: Path) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor in a folder of `convert --to safetensors`, with its dtype and shape."""
    digests = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        shape = "x".join(map(str, tensor.shape))
        digests[name] = f"{tensor.dtype} {shape} {hashlib.sha256(data).hexdigest()}"
    return dict(sorted(digests.items()))


def loop_state(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, without the configuration and the names of this one save."""
    left_out = ("config", "run_id")
    return {key: value for key, value in read_json(path).items() if key not in left_out}


def source(line: dict[str, Any]) -> str:
    """One line of `triaxial data audit --json`: the step and position, and the documents that were read there."""
    where = " ".join(f"{key} {line[key]}" for key in ("step", "sample", "position", "corpus", "epoch", "window"))
    parts = ((part["file"], part["document"], part["offset_tokens"], part["n_tokens"]) for part in line["documents"])
    return where + "".join(f"; {file} document {i}, {n} tokens from {first}" for file, i, first, n in parts)


def validation(path: Path) -> dict[str, Any]:
    """Tokens and loss by corpus, from the JSON of `triaxial evaluate`."""
    corpora = read_json(path)["validation"]
    return {name: {key: found[key] for key in ("tokens", "loss_nats")} for name, found in corpora.items()}


def machine() -> dict[str, Any]:
    """What decides the last bits of a sum: the processor, the instructions that torch may use, and torch itself."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    found = {"amx_tile": "AMX", "avx512_bf16": "AVX512_BF16"}
    return {
        "architecture": platform.machine(),
        "processor": " ".join(facts.get(key, "?") for key in ("vendor_id", "cpu family", "model")),
        "instructions": next((name for flag, name in found.items() if flag in flags), "neither"),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
