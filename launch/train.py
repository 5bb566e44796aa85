"""`triaxial train`: checks a recipe, starts or joins the processes, wires data, engine and metrics, runs the loop."""

import argparse
import json
import os
import shutil
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.dataset import TrainingData, ValidationData, fingerprint_differences
from gpt.errors import ConfigError
from gpt.loss import next_token_loss
from gpt.metrics import MetricsWriter
from gpt.tokenizer import Tokenizer, load_tokenizer
from gpt.train import Outcome, Run, train
from launch.cluster import ClusterEnvironment, keep_freed_memory, launch_local, leave_word_saved
from launch.config import RunConfig, as_dict, changed_keys, read_run_config
from launch.hardware import peak_flops_per_s
from parallel import checkpoint
from parallel.engines.native import EngineSettings, NativeEngine
from parallel.layout import Layout, resolve_layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", help="a TOML recipe, or the name of a shipped one such as gpt3_125m")
    parser.add_argument("--nproc", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="continue from the newest whole checkpoint (the default where the run directory holds one)",
    )


def run(args: argparse.Namespace) -> int:
    config = read_run_config(args.recipe, args.overrides)
    environment = ClusterEnvironment.from_environment()
    if args.nproc is not None:
        if args.nproc < 1:
            raise ConfigError(f"--nproc {args.nproc} must be at least 1")
        layout_of(config, args.nproc)  # a mistake is told before any process starts
        words = ["train", args.recipe, *args.overrides]
        words += [] if args.resume is None else ["--resume" if args.resume else "--no-resume"]
        return launch_local(args.nproc, words)
    layout = layout_of(config, environment.world_size)
    device = pick_device(config, environment)
    if device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        stack.callback(join_processes(config, environment, device))
        outcome = train_here(config, layout, environment, device, resume=args.resume)
    return leave_word_saved(environment) if outcome.interrupted else 0


def layout_of(config: RunConfig, world_size: int) -> Layout:
    return resolve_layout(
        config.parallel, config.batch, model=config.model, seq_len=config.data.seq_len, world_size=world_size
    )


def pick_device(config: RunConfig, environment: ClusterEnvironment) -> torch.device:
    """The accelerator of this local rank, or the CPU."""
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device = 'cuda', but torch finds no CUDA device here; `triaxial doctor` shows what it finds"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if environment.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {environment.local_rank} has no GPU of its own: {torch.cuda.device_count()} here; start as "
            f"many processes per node as it has GPUs, or set run.device = 'cpu'"
        )
    device = torch.device("cuda", environment.local_rank)
    torch.cuda.set_device(device)
    return device


def join_processes(config: RunConfig, environment: ClusterEnvironment, device: torch.device) -> Any:
    """Initialise the default process group; returns what ends it. A single process talks to nobody."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=config.run.collective_timeout_s)
    if environment.master_addr is not None:  # torchrun, or our own launcher
        dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return dist.destroy_process_group


@dataclass(frozen=True)
class Start:
    """From where training begins."""

    step: int
    messages: list[str]


def train_here(
    config: RunConfig, layout: Layout, environment: ClusterEnvironment, device: torch.device, *, resume: bool | None
) -> Outcome:
    """This rank's part of the whole run. Every rank calls it."""
    started_at = time.perf_counter()
    data, validation = open_data(config)
    tokenizer = check_tokenizer(config)
    engine = NativeEngine(
        EngineSettings(
            model=config.model,
            parallel=config.parallel,
            layout=layout,
            optimizer=config.optimizer,
            micro_batch_size=config.batch.micro_batch_size,
            seq_len=config.data.seq_len,
            seed=config.run.seed,
        ),
        loss=next_token_loss,
        device=device,
    )
    peak = total_peak_flops_per_s(config, environment, device)
    saved_state: dict[str, object] = {
        "config": as_dict(config),
        "data": data.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
    }
    start = find_start(config, engine, saved_state, resume=resume)
    loop = Run(
        config=config.train,
        model=config.model,
        schedule=config.schedule,
        peak_learning_rate=config.optimizer.learning_rate,
        seq_len=config.data.seq_len,
        global_batch_tokens=config.batch.global_batch_tokens,
        micro_batch_size=config.batch.micro_batch_size,
        peak_flops_per_s=peak,
        log_every_steps=config.metrics.log_every_steps,
        checkpoints=config.run.directory / "checkpoints",
        saved_state=saved_state,
    )
    writer = open_metrics(config, start) if engine.is_main else None
    with writer or nullcontext():
        if writer is not None:
            prepare_run_directory(config)
            for line in [*describe(config, layout, device, data), *start.messages]:
                writer.message(line)
        outcome = train(loop, engine, data, validation, metrics=writer, first_step=start.step)
        if writer is not None:
            writer.message(how_it_ended(outcome, start))
            if outcome.step > start.step:
                write_summary(config, layout, outcome, elapsed_s=time.perf_counter() - started_at)
    return outcome


def open_data(config: RunConfig) -> tuple[TrainingData, dict[str, ValidationData]]:
    vocab_size, seq_len = config.model.vocab_size, config.data.seq_len
    data = TrainingData(config.data.train, seq_len=seq_len, seed=config.run.seed, vocab_size=vocab_size)
    validation = {
        corpus.name: ValidationData(corpus, seq_len=seq_len, vocab_size=vocab_size) for corpus in config.data.validation
    }
    return data, validation


def check_tokenizer(config: RunConfig) -> Tokenizer:
    """The recipe's tokenizer, whose vocabulary the model must hold."""
    path = Path(config.data.tokenizer)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
            f"{path}; set model.vocab_size = {tokenizer.vocab_size}"
        )
    return tokenizer


def total_peak_flops_per_s(config: RunConfig, environment: ClusterEnvironment, device: torch.device) -> float:
    """Measured on the main rank while the others wait, so that they do not slow it; collective on a CPU."""
    if config.run.peak_flops_per_s is not None:
        return config.run.peak_flops_per_s * environment.world_size
    peak = torch.zeros((), dtype=torch.float64)
    if environment.rank == 0:
        peak += peak_flops_per_s(
            device,
            bf16=config.parallel.precision == "bf16",
            world_size=environment.world_size,
            local_world_size=environment.local_world_size,
        )
    dist.barrier()
    return float(peak)


def find_start(config: RunConfig, engine: NativeEngine, saved_state: dict[str, Any], *, resume: bool | None) -> Start:
    """Load the newest whole checkpoint of the run directory, if there is one and it is wanted."""
    directory = config.run.directory / "checkpoints"
    path, skipped = checkpoint.find_latest(directory)
    messages = [f"skipped the checkpoint {bad}: {reason}" for bad, reason in skipped]
    if resume is False:
        if path is not None:
            raise ConfigError(
                f"--no-resume, but {config.run.directory} holds the checkpoint {path.name}; "
                f"choose another --run.directory, or remove that one"
            )
        return Start(0, messages)
    if path is None:
        if resume:
            raise ConfigError(f"--resume, but {directory} holds no whole checkpoint{_because(messages)}")
        if skipped:
            raise ConfigError(f"{directory} holds checkpoints, but none is whole{_because(messages)}")
        return Start(0, [])
    state = checkpoint.read_state(path)
    messages += check_same_run(path, state, saved_state)
    engine.load(path, verified=True)
    step = state["step"]
    assert isinstance(step, int)
    return Start(step, [*messages, f"resumed from {path} (step {step:,})"])


def check_same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuse a checkpoint of another model, of other data or of another batch; name what else has changed."""
    for section in ("model", "batch"):
        frozen = {k: v for k, v in saved["config"][section].items() if k != "micro_batch_size"}
        changes = changed_keys(frozen, {k: now["config"][section][k] for k in frozen}, prefix=f"{section}.")
        if changes:
            raise ConfigError(
                f"{path} was saved by another configuration ({'; '.join(changes)}); restore these values, or start in "
                f"another --run.directory"
            )
    differences = fingerprint_differences(saved["data"], now["data"])
    if saved["tokenizer"] != now["tokenizer"]:
        differences.append(f"another tokenizer in {now['config']['data']['tokenizer']}")
    if differences:
        raise ConfigError(
            f"{path} was trained on other data than the recipe names now ({'; '.join(differences)}); restore it, or "
            f"start in another --run.directory"
        )
    return [f"changed since the checkpoint: {change}" for change in changed_keys(saved["config"], now["config"])]


def open_metrics(config: RunConfig, start: Start) -> MetricsWriter:
    config.run.directory.mkdir(parents=True, exist_ok=True)
    return MetricsWriter(
        config.metrics,
        config.run.directory,
        run_config=as_dict(config),
        resume_step=start.step or None,
        total_steps=-(-config.train.total_tokens // config.batch.global_batch_tokens),
        total_tokens=config.train.total_tokens,
    )


def prepare_run_directory(config: RunConfig) -> None:
    """Leave beside the checkpoints what is needed to use them later."""
    directory, tokenizer = config.run.directory, Path(config.data.tokenizer)
    (directory / "config.json").write_text(json.dumps(as_dict(config), indent=2) + "\n")
    (directory / "tokenizer").mkdir(exist_ok=True)
    copy = directory / "tokenizer" / tokenizer.name
    if not copy.exists():
        partial = copy.with_name(f".{tokenizer.name}.partial")
        shutil.copyfile(tokenizer, partial)
        os.replace(partial, copy)


def describe(config: RunConfig, layout: Layout, device: torch.device, data: TrainingData) -> list[str]:
    """What will really run, in words."""
    sequences = config.batch.global_batch_tokens // config.data.seq_len
    epochs = data.epochs(config.train.total_tokens // config.data.seq_len)
    mixed = ", ".join(f"{name} {share:.2f}" for name, share in epochs.items())
    return [
        f"model: {config.model.parameters:,} parameters in {config.model.n_layers} layers",
        f"layout: {layout} on {layout.world_size} x {device.type}, {config.parallel.precision}, "
        f"ZeRO {config.parallel.zero_stage} over {layout.data_shard}, schedule {config.parallel.schedule}",
        f"batch: {sequences} sequences of {config.data.seq_len} = {config.batch.global_batch_tokens:,} tokens a step, "
        f"{layout.micro_batches} micro-batches of {config.batch.micro_batch_size} per rank",
        f"training: {config.train.total_tokens:,} tokens; epochs: {mixed}",
    ]


def how_it_ended(outcome: Outcome, start: Start) -> str:
    if outcome.step == start.step:
        return f"nothing left to train: step {start.step:,} has reached train.total_tokens; raise it to go on"
    if outcome.interrupted:
        return f"stopped by a signal at step {outcome.step:,}; run the same command again to continue"
    return f"done: {outcome.tokens_seen:,} tokens in {outcome.step:,} steps, {outcome.tokens_per_s:,.0f} tokens/s"


def write_summary(config: RunConfig, layout: Layout, outcome: Outcome, *, elapsed_s: float) -> None:
    """`train_summary.json`: the figures of this process's part of the run."""
    summary = {
        "parameters": config.model.parameters,
        "layout": str(layout),
        "world_size": layout.world_size,
        "step": outcome.step,
        "tokens_seen": outcome.tokens_seen,
        "tokens_per_s": outcome.tokens_per_s,
        "validation_loss_nats": {name: totals.mean for name, totals in outcome.validation.items()},
        "interrupted": outcome.interrupted,
        "elapsed_s": elapsed_s,
    }
    (config.run.directory / "train_summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _because(messages: list[str]) -> str:
    return f": {'; '.join(messages)}" if messages else ""
