"""Checkpoints of our own form with right digests, as a stranger crafts them, and the files of a run directory.

Each is read as `triaxial train` resumes from it, as `triaxial generate` opens it, and as reports and audits read it.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzzing import Target
from mutations import change_value, mutate

from gpt.data.fingerprint import fingerprint
from gpt.errors import ConfigError
from gpt.model.gpt import GPT
from gpt.telemetry.goodput import read_account
from gpt.telemetry.superseded import supersede_after
from gpt.telemetry.time_ledger import TimeLedger
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from gpt.training.config import Retention
from gpt.training.run import LoopState
from launch.config.run_config import RunConfig, as_dict, read_run_config
from launch.processes.restarts import Restart, count_start
from launch.processes.run_lock import Owner, lock
from launch.runs.audited import open_audited_run
from launch.runs.history import furthest_step, read_history
from launch.runs.saved_run import load_run
from launch.training.build import check_tokenizer, open_data
from launch.training.local_tier import run_identity
from launch.training.resume import check_run_directory, find_start, fresh_start
from parallel.agreement import ALONE
from parallel.checkpoint.load import load_checkpoint, read_tensors
from parallel.checkpoint.local_tier import find_newest_local, load_local, mark, rank_directory
from parallel.checkpoint.manifest import INDEX, MANIFEST, STATE
from parallel.checkpoint.save import save_checkpoint

SIZES = {"vocab_size": 320, "n_ctx": 16, "n_layers": 2, "d_model": 8, "n_heads": 2}
TEXT = "a text of few words, to train on 0123456789\n"
LAYOUT: dict[str, object] = {"tensor": 1}
RESTART = Restart(1, 3)


def config_of(folder: Path) -> RunConfig:
    words = [f"--model.{key}={value}" for key, value in SIZES.items()]
    words += [f"--run.directory={folder}/run", f"--data.tokenizer={folder}/x.model", "--data.seq_len=16"]
    words += [f"--data.train=[{{ path = '{folder}/train' }}]", "--data.validation=[]", "--data.skip=[[3, 5]]"]
    return read_run_config("demo", [*words, "--batch.micro_batch_size=1", "--batch.global_batch_tokens=32"])


def state_of(config: RunConfig) -> dict[str, Any]:
    data, _ = open_data(config)
    tokenizer = check_tokenizer(config).fingerprint
    return {"config": as_dict(config), "data": fingerprint(data), "tokenizer": tokenizer, "run_id": "0123456789abcdef"}


def tensors_of(config: RunConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"model.{name}": parameter.detach() for name, parameter in GPT(config.model).named_parameters()}


def write(folder: Path) -> None:
    """A run directory with two checkpoints, a local tier and the other files of a run; and its corpus."""
    train_sentencepiece(iter([TEXT] * 3), folder / "x.model", vocab_size=300)
    tokenizer = load_tokenizer(folder / "x.model")
    with TokenFileWriter(folder / "train", vocab_size=320) as file:
        for _ in range(20):
            file.add_document(np.array([*tokenizer.encode(TEXT), tokenizer.end_of_document_id]))
    config = config_of(folder)
    run, tensors, start = folder / "run", tensors_of(config), fresh_start(config).state
    run.mkdir()
    rank_directory(folder / "tier").parent.mkdir(exist_ok=True)
    for step in (2, 4):
        loop = LoopState(step, start.skipped, start.spikes).to_json()
        loop["spikes"] = {"losses": [5.5, 5.4], "seen": 2, "high": 0, "first_high": 0}
        progress = {"step": step, "tokens_seen": 32 * step, "samples_seen": 2 * step, "optimizer_steps": step}
        state = {**state_of(config), **progress, "loop": loop}
        save_checkpoint(run / "checkpoints", step=step, tensors=tensors, state=state, keep=Retention(2))
        local = mark(state, save_id="s", layout=LAYOUT)
        save_checkpoint(rank_directory(folder / "tier"), step=step, tensors=tensors, state=local, keep=Retention(2))
    (run / "config.json").write_text(json.dumps(as_dict(config)))
    lines = [{"step": step, "loss": 5.0 - step, "tokens_seen": 32 * step} for step in (1, 2, 3, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    event = {"time": "2026-01-01T00:00:00.000+00:00", "kind": "checkpoint_saved", "step": 4, "text": "saved"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n" + json.dumps({**event, "checkpoint_step": 2}) + "\n")
    write_ledger(run / "ledger.jsonl")
    (run / "train_summary.json").write_text(json.dumps({"tokens_seen": 128, "loss": 5.0}))
    (run / ".progress.json").write_text(json.dumps({"furthest": 4, "starts": 1}))
    (run / ".owner.json").write_text(json.dumps(asdict(Owner.here("1"))))
    (run / "run_id").write_text("0123456789abcdef")


def write_ledger(path: Path) -> None:
    """Two processes of a run."""
    for first in (0, 2):
        ledger = TimeLedger(path, world_size=1, restart_count=first // 2)
        ledger.resume(step=first, tokens=32 * first)
        for step in (first + 1, first + 2):
            ledger.step, ledger.tokens = step, 32 * step
            ledger.write()


# ---- damage with right digests ---------------------------------------------------------------------------------------


def damage_signed(folder: Path, rng: Random, *, step: int = 4) -> list[str]:
    """Change one file of a checkpoint of this step, and write a manifest that has its size and digest."""
    places = ("run/checkpoints", "tier/*")
    checkpoint = rng.choice(sorted(path for place in places for path in folder.glob(f"{place}/step-*{step}")))
    name = rng.choice((STATE, STATE, INDEX, INDEX, MANIFEST, "shard-00000.safetensors"))
    path, manifest = checkpoint / name, json.loads((checkpoint / MANIFEST).read_text())
    if name == MANIFEST:
        manifest, change = change_value(manifest, rng)
        changes = [change]
    elif name.endswith(".json") and rng.random() < 0.9:
        value, changes = json.loads(path.read_text()), []
        for _ in range(rng.choice((1, 1, 2))):
            value, change = change_value(value, rng)
            changes.append(change)
        try:
            path.write_text(json.dumps(value))
        except (ValueError, RecursionError, UnicodeError):
            path.write_text("[" * 100_000)
    else:
        inner = checkpoint / "alone"
        inner.mkdir()
        path.rename(inner / name)
        changes = mutate(inner, rng)
        (inner / name).rename(path) if (inner / name).exists() or (inner / name).is_symlink() else path.touch()
        inner.rmdir()
    if name != MANIFEST and path.is_file() and not path.is_symlink():
        data = path.read_bytes()
        manifest["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(checkpoint / MANIFEST, manifest)
    return [f"{checkpoint.relative_to(folder)}/{name}: {change}" for change in changes]


def sign(path: Path, manifest: Any) -> None:
    def canonical(body: Any) -> bytes:
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    try:
        if isinstance(manifest, dict):
            manifest.pop("digest", None)
            manifest["digest"] = hashlib.sha256(canonical(manifest)).hexdigest()
        path.write_bytes(canonical(manifest))
    except (ValueError, RecursionError, TypeError):
        path.write_text("[" * 100_000)


def damage_run(folder: Path, rng: Random) -> list[str]:
    """Damage the other files of a run directory, and sometimes a checkpoint without its digests."""
    aside = folder / "aside"
    if rng.random() < 0.9:
        (folder / "run" / "checkpoints").rename(aside)
    inner = folder / "run"
    changes = mutate(inner, rng)
    if aside.exists():
        aside.rename(inner / "checkpoints")
    return changes


# ---- readers ---------------------------------------------------------------------------------------------------------


def resume(folder: Path) -> None:
    """As a training that resumes."""
    config = config_of(folder)
    state = state_of(config)
    check_run_directory(config, state, resume=None)
    start = find_start(config, state, resume=None)
    refuse_skipped(text for kind, text in start.events if kind == "checkpoint_skipped")
    assert start.checkpoint is not None
    load_checkpoint(start.checkpoint, tensors=tensors_of(config), complete=True)
    start.state.skipped.positions(start.step, 8)
    start.state.spikes.observe(start.step, 5.0)


def resume_locally(folder: Path) -> None:
    config = config_of(folder)
    found, messages, _ = find_newest_local(folder / "tier", run_id="0123456789abcdef", layout=LAYOUT)
    refuse_skipped(messages)
    assert found is not None
    load_local(found, tensors_of(config), group=ALONE)  # type: ignore[arg-type]


def refuse_skipped(messages: Iterable[str]) -> None:
    """Count a checkpoint that was left out as refused, so that the reason is looked at too."""
    for message in messages:
        raise ConfigError(message)


def generate(folder: Path) -> None:
    """As a command that opens the model."""
    loaded = load_run(folder / "run", step=4)
    loaded.model(torch.zeros(1, 4, dtype=torch.long))
    for _ in read_tensors(loaded.saved.checkpoint):
        pass


def history(folder: Path) -> None:
    """As `triaxial report`, and as the start of a run that finds these files."""
    run = folder / "run"
    found = read_history(run)
    assert found.last_step >= 0
    read_account(run / "ledger.jsonl")
    furthest_step(run)
    run_identity(run)
    count_start(run, RESTART, reached=4)
    with ExitStack() as held:
        lock(held, run, silent_s=0.01)
        supersede_after(run / "metrics.jsonl", step=2)


def audit(folder: Path) -> None:
    audited = open_audited_run(folder / "run", [f"--data.train=[{{ path = '{folder}/train' }}]"], rank=None, text=False)
    refuse_skipped(note for note in audited.notes if note.startswith("skipped: checkpoint"))
    audited.skipped.positions(0, 4)


signed = partial(Target, write=write, damage=damage_signed)
TARGETS = (
    signed("checkpoint_resumed", read=resume, cases=60),
    signed("checkpoint_local", read=resume_locally, cases=40),
    signed("checkpoint_opened", read=generate, cases=30),
    signed("checkpoint_audited", read=audit, cases=30),
    Target("run_directory", write, history, cases=50, damage=damage_run),
)
