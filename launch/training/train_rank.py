"""Run one rank of a training run, from its recipe to its exit status. The launcher starts the processes."""

import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gpt.adapters.config import BASE
from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.fingerprint import fingerprint
from gpt.health.watchers import Heartbeat
from gpt.model.attention import kernel_order
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.goodput import current_account, summary_lines
from gpt.telemetry.metrics import MetricsWriter
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import epochs_read
from gpt.training.engine import Engine
from gpt.training.few_shot_probe import FewShotProbe, make_few_shot_probe
from gpt.training.loop import TrainingLoop
from gpt.training.objective import Objective
from gpt.training.run import Outcome, Run
from gpt.training.samples import Sampler, make_sampler
from launch.config.objectives import program_of
from launch.config.run_config import RunConfig, as_dict, layout_of
from launch.processes.determinism import deterministic
from launch.processes.environment import (
    ClusterEnvironment,
    bootstrap_in_this_process,
    stay_offline,
)
from launch.processes.error_reports import leave_word
from launch.processes.rank_process import StopSignals, check_open_files, keep_freed_memory
from launch.processes.rendezvous import join_processes
from launch.processes.restarts import count_start, describe_resume, describe_unsaved
from launch.processes.run_lock import lock
from launch.runs.history import furthest_step
from launch.training.build import (
    build_engine,
    build_objective,
    build_run,
    check_data,
    check_objective,
    check_tokenizer,
    engine_settings,
    open_data,
    open_metrics,
    pick_device,
    total_peak_flops_per_s,
    watch_steps,
)
from launch.training.checkpoint_space import check_space
from launch.training.hardware import check_hardware, prepare_gpu_libraries
from launch.training.local_tier import check_fast_directory, run_identity
from launch.training.prediction import keep_prediction, known_machine
from launch.training.recipe_warnings import recipe_warnings
from launch.training.resume import RunStart, check_run_directory, find_start, known_restart
from launch.training.summary import describe, how_it_ended, mark_ending, prepare_run_directory, write_summary
from parallel.adapters.base import reference_to
from parallel.agreement import wait_for_all
from parallel.checkpoint.local_tier import discard_all_local
from parallel.engines.settings import sharding_signature
from parallel.health.watchdog import LostPeers, lost_peers, watch_rank
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class Prepared:
    """Everything that a rank opens and checks before it joins the others."""

    config: RunConfig
    environment: ClusterEnvironment
    resume: bool | None
    stop: StopSignals
    layout: Layout
    device: torch.device
    objective: Objective
    data: TrainingData
    validation: dict[str, ValidationData]
    sampler: Sampler | None
    probe: FewShotProbe | None
    saved_state: dict[str, object]
    warnings: list[tuple[EventKind, str]]
    ledger: TimeLedger
    reached: int  # on rank 0: the approximate step that the run had reached before this start


def run_rank(
    config: RunConfig, environment: ClusterEnvironment, *, resume: bool | None, stop: StopSignals | None = None
) -> int:
    """Train as this rank of the run, alone or with the others that the launcher started. Return the exit status.

    `stop`: the signals that stop it; None: this process handles none.
    """
    stop, is_first = stop or StopSignals(), environment.rank == 0
    ledger = TimeLedger(
        config.run.directory / "ledger.jsonl" if is_first else None,
        world_size=environment.world_size,
        restart_count=environment.restart.count if environment.restart is not None else 0,
    )
    program = program_of(config.objective)
    prepared = program.prepare(config, environment, ledger, resume=resume, stop=stop)
    try:
        with stop.held as held:
            if is_first:
                lock(held, config.run.directory, job_id=environment.slurm_job_id)
                leave_word("started", run_directory=config.run.directory)
                progress = count_start(
                    config.run.directory,
                    environment.restart,
                    reached=prepared.reached,
                    requeues=environment.requeues,
                    is_after_stop=environment.is_after_stop,
                )
                # The other ranks wait for this one, for at most the timeout.
                time.sleep(min(progress.pause_s(config.run.restart_pause_s), config.run.collective_timeout_s / 2))
            with ledger.span("start_up/joining"):
                join_processes(environment, prepared.device, timeout_s=config.run.collective_timeout_s)
            # In this order: the watchdog's set-up communicates, and NCCL reads its settings at the first communication.
            held.enter_context(deterministic(config.run.deterministic, prepared.device))
            held.enter_context(kernel_order(prepared.device, config.parallel.attention))
            error_file, host = environment.error_file, environment.node_name
            watching = watch_rank(config.health, config.run.directory, error_file=error_file, host=host)
            heartbeat = held.enter_context(watching)
            try:
                return int(program.train_joined(prepared, heartbeat))
            except Exception as error:
                if lost_peers(error):
                    stop.expect()
                if environment.world_size == 1 and dist.is_initialized():
                    dist.destroy_process_group()  # no peer can wait, and this process may train again
                raise
    except LostPeers:  # the watchdog has reported it, to the console and the run directory
        return 1


def prepare(
    config: RunConfig,
    environment: ClusterEnvironment,
    ledger: TimeLedger,
    *,
    resume: bool | None,
    stop: StopSignals | None = None,
) -> Prepared:
    """Open and check everything that needs no other rank, so that ranks do not wait for one that finds a mistake."""
    check_open_files(environment.world_size)
    layout = layout_of(config, environment.world_size)
    device = pick_device(config, environment)
    check_hardware(config, layout, device)
    check_objective(config)
    if device.type == "cpu":
        keep_freed_memory()
    notes = prepare_gpu_libraries(config.run) if device.type == "cuda" else []
    with ledger.span("start_up/data"):
        data, validation = open_data(config)
        warnings = [*(("warning", note) for note in notes), *check_data(config, data, validation)]
        tokenizer = check_tokenizer(config)
    saved_state: dict[str, object] = {
        "config": as_dict(config),
        "data": fingerprint(data),
        "tokenizer": tokenizer.fingerprint,
    }
    stay_offline()
    bootstrap_in_this_process()  # for the few-shot probe
    # A restart resumes in any case. With several nodes, some ranks do not yet know whether this is one.
    first_start = environment.restart is None and environment.local_world_size == environment.world_size
    check_run_directory(config, saved_state, resume=resume if first_start else None)
    return Prepared(
        config=config,
        environment=environment,
        resume=resume,
        stop=stop or StopSignals(),
        layout=layout,
        device=device,
        objective=build_objective(config),
        data=data,
        validation=validation,
        sampler=make_sampler(config.train, tokenizer, n_ctx=config.model.n_ctx),
        probe=make_few_shot_probe(config.train, tokenizer, n_ctx=config.model.n_ctx),
        saved_state=saved_state,
        warnings=[*recipe_warnings(config, tokenizer_vocab_size=tokenizer.vocab_size), *warnings],
        ledger=ledger,
        reached=furthest_step(config.run.directory) if environment.rank == 0 else 0,
    )


def train_joined(prepared: Prepared, heartbeat: Heartbeat) -> int:
    """Train together with the other ranks, from the checkpoint to the end. Return the exit status."""
    config = prepared.config
    machine = known_machine(config, prepared.environment, prepared.device)  # before the model takes memory
    run, engine, start, events = start_run(prepared)
    with prepared.ledger, open_metrics(config, run, start) if engine.is_main else nullcontext() as metrics:
        if metrics is not None:
            prepare_run_directory(config)
            lines = describe(config, run, prepared.layout, device=prepared.device, data=prepared.data)
            for line in [*lines, *keep_prediction(config, prepared.layout, machine, peak=run.peak_flops_per_s)]:
                metrics.message(line)
            for kind, line in events:
                metrics.event(kind, step=start.step, text=line)
        first_step = start.step  # the loop moves `start.state` on
        outcome = train(prepared, run, engine, start, metrics=metrics, heartbeat=heartbeat)
        prepared.stop.end()
        status = mark_ending(outcome.ended)
        prepared.ledger.shut_down()
        weights = engine.weights_digest() if config.run.deterministic else None
        if metrics is not None:
            report_end(prepared, run, outcome, metrics, first_step=first_step, weights=weights)
    if run.local_checkpoints is not None and outcome.ended in ("total_tokens", "target_loss"):
        discard_all_local(run.local_checkpoints)
    with suppress(RuntimeError):  # all is saved, so a peer that is gone changes nothing
        wait_for_all()  # a launcher ends the other ranks when the first one leaves with another status than 0
        dist.destroy_process_group()  # not after an error: it would wait for a peer that is still in a collective
    return status


def dry_run_notes(config: RunConfig, layout: Layout) -> list[str]:
    """Lines for `--dry-run` on what it does not measure: nothing."""
    return []


def start_run(prepared: Prepared) -> tuple[Run, Engine, RunStart, list[tuple[EventKind, str]]]:
    """Return the run, its engine with weights, the start, and the events to log. Collective over all ranks."""
    config, layout, ledger = prepared.config, prepared.layout, prepared.ledger
    start, events = find_run_start(prepared)
    with ledger.span("start_up/building"):
        engine = build_engine(config, layout, prepared.device, start, ledger, objective=prepared.objective)
    start = start.without_checkpoint()
    with ledger.span("start_up/measuring"):
        peak = total_peak_flops_per_s(config, prepared.environment, prepared.device)
    run = build_run(config, prepared.saved_state, peak_flops_per_s=peak)
    return run, engine, start, [*events, *start.events, *check_space(run, engine, step=start.step)]


def find_run_start(prepared: Prepared) -> tuple[RunStart, list[tuple[EventKind, str]]]:
    """Find the checkpoint or weights to start from, and the events to log before its own. Collective over all ranks."""
    config, ledger = prepared.config, prepared.ledger
    restart = known_restart(prepared.environment.restart)
    resume = prepared.resume if restart is None else None
    if config.checkpoint.fast_directory:
        check_fast_directory(config)
        prepared.saved_state["run_id"] = run_identity(config.run.directory)
    with ledger.span("start_up/verifying"):
        sharding = sharding_signature(engine_settings(config, prepared.layout))
        start = find_start(config, prepared.saved_state, resume=resume, layout=sharding)
    if config.adapter is not None and not config.adapter.save_base and start.weights is not None:
        prepared.saved_state[BASE] = reference_to(start.weights, config.run.directory)
    if start.step >= config.train.steps(config.batch.ramp):
        ledger.path = None  # nothing is left to train: the time since the run's end does not belong to it
    ledger.write()  # so that the ledger has this start, even if it fails from here on
    events = list(prepared.warnings)
    if restart is not None:
        events.insert(0, ("restart", describe_resume(restart, reached=prepared.reached, step=start.step)))
    elif prepared.reached > start.step:
        events.insert(0, ("warning", describe_unsaved(prepared.reached, step=start.step)))
    return start, events


def train(
    prepared: Prepared,
    run: Run,
    engine: Engine,
    start: RunStart,
    *,
    metrics: MetricsWriter | None,
    heartbeat: Heartbeat,
) -> Outcome:
    """Run the training loop from `start`, whose state it advances. Collective over all ranks."""
    config = prepared.config
    return TrainingLoop(
        run,
        engine,
        prepared.objective,
        prepared.data,
        prepared.validation,
        state=start.state,
        metrics=metrics,
        ledger=prepared.ledger,
        sampler=prepared.sampler,
        probe=prepared.probe,
        watch=watch_steps(config, prepared.layout, prepared.device),
        heartbeat=heartbeat,
        stop=prepared.stop,
    ).train()


def report_end(
    prepared: Prepared, run: Run, outcome: Outcome, metrics: MetricsWriter, *, first_step: int, weights: str | None
) -> None:
    """Report how the run ended and where its time went, on the console and in the run directory."""
    config, step = prepared.config, outcome.state.step
    metrics.event("ended", step=step, text=how_it_ended(config, outcome, first_step=first_step))
    if step == first_step:
        return
    account = current_account(prepared.ledger)
    for line in summary_lines(account) if account is not None else []:
        metrics.message(line)
    epochs = epochs_read(run, prepared.data, outcome.state)
    write_summary(config, prepared.layout, outcome, epochs=epochs, account=account, weights=weights)
