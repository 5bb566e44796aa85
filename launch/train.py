"""`triaxial train`: checks a recipe, starts or joins the processes, wires data, engine and metrics, runs the loop."""

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from gpt import token_corpus
from gpt.dataset import TrainingData, ValidationData
from gpt.errors import ConfigError
from gpt.goodput import current_account, summary_lines
from gpt.heartbeat import Heartbeat
from gpt.loss import loss_for
from gpt.metrics import MetricsWriter
from gpt.samples import Sampler, make_sampler
from gpt.time_ledger import TimeLedger
from gpt.tokenizer import Tokenizer, load_tokenizer
from gpt.train import Run, epochs_read, train
from launch import dry_run
from launch.checkpoint_room import check_room
from launch.cluster import ClusterEnvironment, keep_freed_memory, launch_local, leave_word_saved
from launch.config import RunConfig, as_dict, read_run_config
from launch.fast_tier import check_fast_directory, fast_directory, run_identity
from launch.hardware import peak_flops_per_s
from launch.resume import Start, check_run_directory, find_start
from launch.run_report import describe, how_it_ended, prepare_run_directory, write_summary
from launch.start_up import join_processes
from parallel.checkpoint_fast import discard_all
from parallel.engines.native import EngineSettings, NativeEngine, holding_layout
from parallel.layout import Layout, check_device, resolve_layout
from parallel.stragglers import Stragglers
from parallel.watchdog import LostPeers, watch_rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", help="a TOML recipe, or the name of a shipped one such as gpt3_125m")
    parser.add_argument("--nproc", type=int, metavar="N", help="start N processes on this machine")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="continue from the newest whole checkpoint (the default where the run directory holds one)",
    )
    dry_run.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = read_run_config(args.recipe, args.overrides)
    environment = ClusterEnvironment.from_environment()
    if dry_run.is_wanted(args, environment):
        layout = layout_of(config, dry_run.world_size_of(args, config))
        return dry_run.run(args, config, engine_settings(config, layout))
    if args.nproc is not None:
        if args.nproc < 1:
            raise ConfigError(f"--nproc {args.nproc} must be at least 1")
        layout_of(config, args.nproc)  # a mistake is told before any process starts
        words = ["train", args.recipe, *args.overrides]
        words += [] if args.resume is None else ["--resume" if args.resume else "--no-resume"]
        return launch_local(args.nproc, words)
    ledger = TimeLedger(
        config.run.directory / "ledger.jsonl" if environment.rank == 0 else None,
        world_size=environment.world_size,
        restart_count=environment.restart_count,
    )
    layout = layout_of(config, environment.world_size)
    device = pick_device(config, environment)
    check_device(config.parallel, device.type)
    if device.type == "cpu":
        keep_freed_memory()
    with ledger.span("start_up/data"):
        data, validation = open_data(config)
        tokenizer = check_tokenizer(config)
    sampler = make_sampler(config.train, tokenizer, n_ctx=config.model.n_ctx)
    saved_state: dict[str, object] = {
        "config": as_dict(config),
        "data": data.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
    }
    check_run_directory(config, saved_state, resume=args.resume)
    with ledger.span("start_up/joining"):
        join_processes(environment, device, timeout_s=config.run.collective_timeout_s)
    try:
        with watch_rank(config.health, config.run.directory, error_file=environment.error_file) as heartbeat:
            return train_joined(
                args,
                config,
                environment,
                heartbeat,
                layout=layout,
                device=device,
                data=data,
                validation=validation,
                sampler=sampler,
                saved_state=saved_state,
                ledger=ledger,
            )
    except LostPeers:  # it has been said, and what it was is in the run directory
        return 1


def train_joined(
    args: argparse.Namespace,
    config: RunConfig,
    environment: ClusterEnvironment,
    heartbeat: Heartbeat,
    *,
    layout: Layout,
    device: torch.device,
    data: TrainingData,
    validation: dict[str, ValidationData],
    sampler: Sampler | None,
    saved_state: dict[str, object],
    ledger: TimeLedger,
) -> int:
    """A rank among the others, from the checkpoint to the end of training; returns the exit status."""
    settings = engine_settings(config, layout)
    if config.checkpoint.fast_directory:
        check_fast_directory(config)
        saved_state["run_id"] = run_identity(config.run.directory)
    with ledger.span("start_up/verifying"):
        start = find_start(config, saved_state, resume=args.resume, layout=holding_layout(settings))
    if start.step >= config.train.steps(config.batch.ramp):
        ledger.path = None  # nothing is left to train: the time since the end is no part of the run
    ledger.write()  # a restart that fails from here on is in it
    with ledger.span("start_up/building"):
        engine = build_engine(config, layout, device, start, ledger)
    with ledger.span("start_up/measuring"):
        peak = total_peak_flops_per_s(config, environment, device)
    loop = build_loop(config, saved_state, peak_flops_per_s=peak)
    room = check_room(loop, engine, step=start.step)
    with ledger, open_metrics(config, loop, start) if engine.is_main else nullcontext() as metrics:
        if metrics is not None:
            prepare_run_directory(config)
            for line in describe(config, loop, layout, device=device, data=data):
                metrics.message(line)
            for kind, line in [*start.events, *room]:
                metrics.event(kind, step=start.step, text=line)
        first_step = start.step
        outcome = train(
            loop,
            engine,
            data,
            validation,
            state=start.state,
            metrics=metrics,
            ledger=ledger,
            sampler=sampler,
            watch=watch_steps(config, layout, device),
            heartbeat=heartbeat,
        )
        ledger.shut_down()
        if metrics is not None:
            metrics.event("ended", step=outcome.state.step, text=how_it_ended(config, outcome, first_step=first_step))
            if outcome.state.step > first_step:
                account = current_account(ledger)
                for line in summary_lines(account) if account is not None else []:
                    metrics.message(line)
                epochs = epochs_read(loop, data, outcome.state)
                write_summary(config, layout, outcome, epochs=epochs, account=account)
    if loop.fast_checkpoints is not None and outcome.ended in ("total_tokens", "target_loss"):
        discard_all(loop.fast_checkpoints)
    dist.destroy_process_group()  # not after an error: a peer still inside a collective would keep us from leaving
    return leave_word_saved(environment) if outcome.ended == "signal" else 0


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


def build_engine(
    config: RunConfig, layout: Layout, device: torch.device, start: Start, ledger: TimeLedger
) -> NativeEngine:
    """The engine with its weights: a checkpoint's, or the seed's. Collective over all ranks."""
    engine = NativeEngine(
        engine_settings(config, layout),
        loss=loss_for(compile=config.parallel.compile),
        device=device,
        fill=start.path is None,
    )
    if start.path is not None:
        with ledger.span("start_up/loading"):
            engine.load(start.path, verified=True)
    return engine


def engine_settings(config: RunConfig, layout: Layout) -> EngineSettings:
    return EngineSettings(
        model=config.model,
        parallel=config.parallel,
        layout=layout,
        optimizer=config.optimizer,
        micro_batch_size=config.batch.micro_batch_size,
        seed=config.run.seed,
    )


def build_loop(config: RunConfig, saved_state: dict[str, object], *, peak_flops_per_s: float) -> Run:
    return Run(
        config=config.train,
        checkpoint=config.checkpoint,
        faults=config.faults,
        spike=config.spike,
        model=config.model,
        schedule=config.schedule,
        peak_learning_rate=config.optimizer.learning_rate,
        seq_len=config.data.seq_len,
        batch=config.batch.ramp,
        micro_batch_size=config.batch.micro_batch_size,
        peak_flops_per_s=peak_flops_per_s,
        log_every_steps=config.metrics.log_every_steps,
        compare_copies_every_steps=config.health.replica_check_every_steps,
        directory=config.run.directory,
        fast_checkpoints=fast_directory(config),
        saved_state=saved_state,
    )


def watch_steps(config: RunConfig, layout: Layout, device: torch.device) -> Stragglers | None:
    """What finds slow ranks, where the recipe wants it and there are ranks to compare."""
    every_steps = config.health.straggler_every_steps
    if every_steps == 0 or layout.tensor * layout.data == 1:
        return None
    return Stragglers(layout, device, every_steps=every_steps)


def open_data(config: RunConfig) -> tuple[TrainingData, dict[str, ValidationData]]:
    vocab_size, seq_len = config.model.vocab_size, config.data.seq_len
    data = TrainingData(config.data.train, seq_len=seq_len, seed=config.run.seed, vocab_size=vocab_size)
    validation = {
        corpus.name: ValidationData(corpus, seq_len=seq_len, vocab_size=vocab_size) for corpus in config.data.validation
    }
    return data, validation


def check_tokenizer(config: RunConfig) -> Tokenizer:
    """The recipe's tokenizer, whose vocabulary the model must hold and which must have made the corpora."""
    path = Path(config.data.tokenizer)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
            f"{path}; set model.vocab_size = {tokenizer.vocab_size}"
        )
    for corpus in (*config.data.train, *config.data.validation):
        token_corpus.check_tokenizer(Path(corpus.path), path=path, fingerprint=tokenizer.fingerprint)
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


def open_metrics(config: RunConfig, loop: Run, start: Start) -> MetricsWriter:
    return MetricsWriter(
        config.metrics,
        config.run.directory,
        run_config=as_dict(config),
        resume_step=start.step or None,
        total_steps=loop.steps,
        total_tokens=loop.batch.tokens_seen(loop.steps),
    )
