"""Describe a run at its start and its end, and write the files next to its checkpoints."""

import json
from pathlib import Path

import torch

from data_prep.conversations.templates import SETTINGS_FILE, TEMPLATE_FILE
from gpt.adapters.config import adapter_parameters, adapter_shapes
from gpt.data.dataset import TrainingData
from gpt.data.sampling_rules import PackedDocuments
from gpt.files.atomic import replace_file
from gpt.files.regular import read_bytes
from gpt.telemetry.goodput import Account
from gpt.telemetry.screen import counted
from gpt.tokenizer.tokenizers import tokenizer_files
from gpt.training.run import End, Outcome, Run
from gpt.training.schedule import BatchRamp
from launch.config.run_config import RunConfig, as_dict
from launch.processes.determinism import conditions
from launch.processes.rank_process import mark_end, mark_interrupted, mark_saved
from launch.runs.history import read_table
from launch.runs.prediction import PREDICTION, prediction_of
from launch.runs.software import keep_software
from launch.training.hardware import missing_peak
from launch.training.start_from import copy_companions
from parallel.layout.layout import Layout


def prepare_run_directory(config: RunConfig) -> None:
    """Write configuration, versions, tokenizer and chat template to the run directory, for later use of checkpoints."""
    directory = config.run.directory
    replace_file(directory / "config.json", json.dumps(as_dict(config), indent=2) + "\n")
    keep_software(directory)
    (directory / "tokenizer").mkdir(exist_ok=True)
    files = tokenizer_files(Path(config.data.tokenizer))
    templates = [files[0].with_name(name) for name in (TEMPLATE_FILE, SETTINGS_FILE)]
    for file in (*files, *(file for file in templates if file.is_file())):
        copy = directory / "tokenizer" / file.name
        if not copy.exists():
            replace_file(copy, read_bytes(file))
    copy_companions(config)


def describe(config: RunConfig, run: Run, layout: Layout, *, device: torch.device, data: TrainingData) -> list[str]:
    """Return lines on what will run: effective sizes, layout, batch and tokens."""
    epochs = data.epochs(run.samples_seen(run.steps))
    mixed = ", ".join(f"{name} {share:.2f}" for name, share in epochs.items())
    return [
        f"model: {config.model.parameters:,} parameters in {config.model.n_layers} layers",
        *describe_adapter(config),
        f"layout: {layout} on {layout.world_size} x {device.type}, {config.parallel.precision}, "
        f"ZeRO {config.parallel.zero_stage} over {layout.data_shard}"
        f"{'' if config.parallel.engine == 'native' else f', engine {config.parallel.engine}'}",
        *([f"deterministic: {conditions(device)}"] if config.run.deterministic else []),
        *describe_pipeline(config, layout),
        f"batch: {counted(run.batch.full_tokens // run.seq_len, 'sequence')} of {run.seq_len} = "
        f"{run.batch.full_tokens:,} tokens a step, {layout.micro_batches} micro-batch"
        f"{'' if layout.micro_batches == 1 else 'es'} of {config.batch.micro_batch_size} per rank",
        *describe_ramp(run.batch),
        describe_learning_rate(config),
        *([] if run.peak_flops_per_s else [missing_peak(device)]),
        *describe_checks(data),
        *describe_packing(data),
        f"training: {counted(run.steps, 'step')} = {run.batch.tokens_seen(run.steps):,} tokens (train.total_tokens = "
        f"{config.train.total_tokens:,}, in whole steps); epochs: {mixed}",
    ]


def describe_adapter(config: RunConfig) -> list[str]:
    """Return the number of parameters that train, if the recipe has adapters."""
    if config.adapter is None:
        return []
    count = len(adapter_shapes(config.model, config.adapter)) // 2
    parameters = adapter_parameters(config.model, config.adapter)
    more = ", and " + ", ".join(config.adapter.also_train) if config.adapter.also_train else ""
    return [
        f"adapter: rank {config.adapter.rank} on {count:,} projections; their {parameters:,} parameters "
        f"train{more}, and the base model is frozen"
    ]


def describe_checks(data: TrainingData) -> list[str]:
    """Name the token files that have no checksums, if there are any."""
    unchecked = [str(files.tokens.prefix) for files in data.files if files.tokens.unchecked]
    if not unchecked:
        return []
    return [
        f"data: damage of {', '.join(unchecked)} would not be noticed, since there are no checksums; `triaxial prepare "
        f"checksum {unchecked[0]}` makes them"
    ]


def describe_packing(data: TrainingData) -> list[str]:
    """Say how full packed samples are and how many documents are cut, for each corpus that is packed."""
    lines = []
    for files in data.files:
        if not isinstance(files.sampling, PackedDocuments):
            continue
        room, n_documents, n_cut = data.seq_len + 1, files.tokens.n_documents, files.sampling.n_cut
        held = sum(stop - start for start, stop in map(files.span, range(min(files.n_samples, 10_000))))
        full = held / (min(files.n_samples, 10_000) * room)
        lines.append(
            f"packing: {n_documents:,} documents of corpus '{files.name}' in {files.n_samples:,} samples, {full:.0%} "
            f"full; {n_cut:,} documents are longer than {room:,} tokens and are cut"
        )
    return lines


def describe_ramp(batch: BatchRamp) -> list[str]:
    """Describe the batch size ramp, if there is one."""
    *ramped, last = batch.levels()
    if not ramped:
        return []
    return [
        f"batch ramp: {ramped[0].step_tokens:,} tokens a step at first, {len(ramped)} sizes by "
        f"{batch.increment_tokens:,}, the full size from step {last.first_step + 1:,} on, after "
        f"{last.tokens_before:,} tokens"
    ]


def describe_learning_rate(config: RunConfig) -> str:
    """Describe the learning rate over the run, whose values may be those of a rule."""
    schedule, peak = config.schedule, config.optimizer.learning_rate
    line = f"learning rate: {peak:g} after a warm-up of {schedule.warmup_tokens:,} tokens"
    if schedule.decay_tokens is None:
        return line
    return f"{line}, then {schedule.shape} to {peak * schedule.final_fraction:g} at {schedule.decay_tokens:,} tokens"


def describe_pipeline(config: RunConfig, layout: Layout) -> list[str]:
    """Name the schedule and the blocks of each stage, if there are several stages."""
    if layout.pipeline == 1:
        return []
    blocks, per_rank = ", ".join(map(str, layout.split)), layout.stages // layout.pipeline
    stages = "1 stage" if per_rank == 1 else f"{per_rank} stages"
    return [
        f"pipeline: schedule {config.parallel.schedule}, {stages} a rank; blocks of "
        f"stages 0 to {layout.stages - 1}: {blocks} (embedding with the first, head with the last)"
    ]


def how_it_ended(config: RunConfig, outcome: Outcome, *, first_step: int) -> str:
    step = outcome.state.step
    if step == first_step and outcome.ended == "total_tokens":
        return f"nothing left to train: step {step:,} has reached train.total_tokens; raise it to train further"
    if outcome.ended == "signal":
        return f"stopped by a signal at step {step:,}; run the same command again to continue"
    if outcome.ended == "interrupt":
        return f"interrupted: step {step:,} is saved; run the same command again to continue"
    figures = f"{outcome.tokens_seen:,} tokens in {counted(step, 'step')}, {outcome.tokens_per_s:,.0f} tokens/s"
    if outcome.ended == "stop_after_s":
        return f"stopped after train.stop_after_s = {config.train.stop_after_s:g}, {figures}; run again to continue"
    if outcome.ended == "target_loss":
        return f"done: train.target_loss = {config.train.target_loss} is reached, {figures}"
    return f"done: {figures}"


def mark_ending(ended: End) -> int:
    """Leave the word for the launcher that belongs to this end; return the exit status."""
    if ended == "signal":
        return mark_saved()
    return mark_interrupted() if ended == "interrupt" else mark_end("done")


def write_summary(
    config: RunConfig,
    layout: Layout,
    outcome: Outcome,
    *,
    epochs: dict[str, float],
    account: Account | None,
    weights: str | None,
) -> None:
    """Write `train_summary.json`: results of this process's part of the run, and the time account of the whole run.

    `weights`: a digest of the weights, if there is one. A predicted step stands beside the measured one.
    """
    summary = {
        "parameters": config.model.parameters,
        "layout": str(layout),
        "world_size": layout.world_size,
        "step": outcome.state.step,
        "tokens_seen": outcome.tokens_seen,
        "tokens_per_s": outcome.tokens_per_s,
        "epochs": epochs,
        "validation_loss_nats": {name: totals.mean for name, totals in outcome.validation.items()},
        "ended": outcome.ended,
        "interrupted": outcome.ended in ("signal", "interrupt"),
        "skipped_steps": outcome.state.skipped_steps,
        "rewinds": outcome.state.rewinds,
    }
    if weights is not None:
        summary["weights_sha256"] = weights
    prediction = prediction_of(read_table(config.run.directory / PREDICTION, []))
    if prediction is not None and outcome.tokens_per_s:
        measured = prediction.tokens / outcome.tokens_per_s
        ratio = measured / prediction.step_s
        summary |= {"step_s": measured, "predicted_step_s": prediction.step_s, "measured_over_predicted": ratio}
    if account is not None:
        summary |= {"goodput": account.goodput, "wall_s": account.wall_s, "seconds": account.by_name}
    replace_file(config.run.directory / "train_summary.json", json.dumps(summary, indent=2) + "\n")
