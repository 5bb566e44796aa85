"""Measure how fast this machine trains a model: a real run of some seconds over random tokens."""

import signal
import subprocess
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.token_files.files import TokenFileWriter
from launch.processes.environment import shown_settings
from launch.processes.terminal import WorkProgress
from launch.start.model_choice import Machine, Training
from launch.start.train_recipe import train_recipe

STEPS_S = 3.0  # seconds of steps that are measured, after the first
_FIRST_STEP_LIMIT_S = 300.0
_MIN_STEPS = 3


def measured_speed(training: Training, tokenizer: bytes, *, n_processes: int, progress: WorkProgress) -> float:
    """Return the tokens/s of this model on this machine, in steps of a real run. ConfigError: it cannot run here."""
    progress.start("starting a run")
    with tempfile.TemporaryDirectory(prefix="triaxial-speed-") as name:
        folder = Path(name)
        (folder / "tokenizer.model").write_bytes(tokenizer)
        for split in ("train", "validation"):
            _write_tokens(folder / split, 64 * training.seq_len, training.model.vocab_size)
        recipe = folder / "train.toml"
        text = train_recipe(training, name="speed", corpus=folder, run=folder / "run", title="")
        recipe.write_text(text, encoding="utf-8")
        words = [
            sys.executable,
            "-m",
            "launch.main",
            "train",
            str(recipe),
            "--checkpoint.every_s",
            "0",
            "--metrics.log_every_steps",
            "1",
        ]
        # One micro-batch of each rank a step: the time of a token hardly depends on their number.
        step_tokens = training.micro_batch_size * training.seq_len * n_processes
        words += ["--batch.global_batch_tokens", str(step_tokens), "--train.total_tokens", str(1 << 50)]
        words += ["--schedule.decay_tokens", str(1 << 50), "--nproc", str(n_processes)]
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                return _watch(process, folder / "run" / "metrics.jsonl", folder / "output", step_tokens, progress)
            finally:
                _end(process)


def _watch(
    process: "subprocess.Popen[bytes]", metrics: Path, output: Path, step_tokens: int, progress: WorkProgress
) -> float:
    """Return the tokens/s of the steps of STEPS_S seconds, without the first one."""
    started_at, first_at = time.monotonic(), 0.0
    while True:
        time.sleep(0.1)
        steps = _steps(metrics)
        now = time.monotonic()
        if steps and not first_at:
            first_at = now
            progress.start("measuring its steps", total=STEPS_S)
        progress.update(now - (first_at or started_at))
        if len(steps) >= _MIN_STEPS and now - first_at >= STEPS_S:
            return step_tokens * (len(steps) - 1) / sum(steps[1:])
        if process.poll() is not None:
            lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise ConfigError(f"this machine cannot train the chosen model: {lines[-1]}. Choose its size by --params")
        if not first_at and now - started_at > _FIRST_STEP_LIMIT_S:
            raise ConfigError(f"no step ended within {_FIRST_STEP_LIMIT_S:.0f} s. Choose a smaller model by --params")


def _steps(metrics: Path) -> list[float]:
    """Return the seconds of each step so far."""
    times = []
    for line in metrics.read_bytes().splitlines() if metrics.exists() else ():
        try:
            row = decode_json(line)
        except ValueError:  # being written
            continue
        if isinstance(row, dict) and "loss" in row:
            times.append(float(row["step_s"]))
    return times


def _write_tokens(prefix: Path, n_tokens: int, vocab_size: int) -> None:
    with TokenFileWriter(prefix, vocab_size=vocab_size) as writer:
        writer.add_document(np.random.default_rng(0).integers(2, vocab_size, n_tokens))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a run that has nothing to save. Its ranks end with their launcher."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def machine_here(n_processes: int | None) -> Machine:
    """Return this machine's kind of device, and `n_processes` or one for each GPU that CUDA_VISIBLE_DEVICES leaves.

    It asks no library, only /dev.
    """
    n_devices = sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))
    n_gpus = visible_gpus(n_devices, shown_settings().get("CUDA_VISIBLE_DEVICES"))
    return Machine("cuda" if n_gpus else "cpu", n_processes or max(1, n_gpus))


def visible_gpus(n_devices: int, visible: str | None) -> int:
    """Return how many of the GPUs CUDA shows. `visible`: CUDA_VISIBLE_DEVICES, whose names end at an invalid one."""
    if visible is None:
        return n_devices
    names = takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(",")))
    return min(n_devices, len(list(names)))
