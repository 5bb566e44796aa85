"""Find the checkpoint to resume from, and check that it belongs to the same run. The engine loads the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt.data.fingerprint import fingerprint_differences
from gpt.data.skipped import SkippedData, resumed
from gpt.errors import ConfigError
from gpt.health.spikes import SpikeDetector
from gpt.telemetry.event_log import EventKind
from gpt.training.optimizer import OptimizerConfig
from gpt.training.run import LoopState
from launch.config.objectives import DEFAULT
from launch.config.run_config import RunConfig, changed_keys, with_defaults
from launch.processes.restarts import Restart
from launch.training.local_tier import local_directory
from launch.training.start_from import check_start_from, cut_layers, starting_weights
from parallel.adapters.base import with_bases
from parallel.agreement import combine
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints, list_unusable
from parallel.checkpoint.handle import Checkpoint, read_checkpoint_header
from parallel.checkpoint.local_tier import discard_local_after, find_newest_local
from parallel.errors import CheckpointError, CheckpointFault


@dataclass(frozen=True)
class RunStart:
    """The point from which training starts, and the events to log, each with its kind."""

    state: LoopState
    checkpoint: Checkpoint | None  # to load; None: a new run
    events: list[tuple[EventKind, str]]
    weights: Checkpoint | None = None  # of another run: those of a new run, or the base of a checkpoint of adapters

    @property
    def step(self) -> int:
        return self.state.step

    def without_checkpoint(self) -> "RunStart":
        """The same, once the engine is loaded: the index of a large checkpoint takes gigabytes."""
        return replace(self, checkpoint=None, weights=None)


def check_run_directory(config: RunConfig, saved_state: Mapping[str, Any], *, resume: bool | None) -> None:
    """Raise the errors that need no verified checkpoint, before any process communicates."""
    check_no_links(config.run.directory)
    found = list_checkpoints(config.run.directory / "checkpoints")
    if not found:
        check_start_from(config)
        if resume and not config.checkpoint.fast_directory and not list_unusable(config.run.directory / "checkpoints"):
            raise ConfigError(f"--resume, but {config.run.directory / 'checkpoints'} contains no checkpoint")
        return
    if resume is False:
        raise _no_resume_error(config, found[0])
    try:
        state = read_checkpoint_header(found[0]).state
    except CheckpointError:
        return  # find_start logs it and falls back to an older one
    check_is_training(found[0], state)
    check_same_run(found[0], state, saved_state)
    loop_state(config, state)


def _no_resume_error(config: RunConfig, found: Path) -> ConfigError:
    return ConfigError(
        f"--no-resume, but {config.run.directory} contains the checkpoint {found.name}. Use another --run.directory, "
        f"or remove that one."
    )


def check_no_links(directory: Path) -> None:
    """ConfigError for anything in a run directory that is neither a file nor a folder.

    Through a symbolic link the run would write elsewhere, and at a named pipe it would wait silently. The folder
    of checkpoints may be a link, for example to a larger disk.
    """
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_symlink() and not (path.name == "checkpoints" and path.is_dir()):
            raise ConfigError(
                f"{path} is a symbolic link. Only the folder of checkpoints may be one. Remove the link, or use "
                f"another --run.directory."
            )
        if not path.is_symlink() and path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(
                f"{path} is a named pipe, a socket or a device, not a regular file. Remove it, or use another "
                f"--run.directory."
            )


def find_start(
    config: RunConfig, saved_state: Mapping[str, Any], *, resume: bool | None, layout: dict[str, object] | None = None
) -> RunStart:
    """Start from the newest whole checkpoint, shared or local, or from the beginning if there is none.

    Newer checkpoints are deleted from the local tier, unless one was skipped for a fault of a disk, which may pass.
    `layout`: the sharding signature that local checkpoints must have. Collective over all ranks. CheckpointFault as
    `find_latest`.
    """
    shared_directory, tier = config.run.directory / "checkpoints", local_directory(config)
    local, messages, fault = None, list[str](), False
    if tier is not None and layout is not None and resume is not False:
        local, messages, fault = find_newest_local(tier, run_id=str(saved_state["run_id"]), layout=layout)
    shared, skipped = find_latest(shared_directory, newer_than=-1 if local is None else local.step)
    messages += [f"skipped the checkpoint {path}: {reason}" for path, reason in skipped]
    if fault and tier is not None and (shared or local) is None:  # never start over for a fault that may pass
        raise CheckpointFault(tier, f"it cannot be read, and there is no other checkpoint{_because(messages)}")
    start = _start_from(shared or local, config, saved_state, resume=resume, messages=messages)
    if tier is not None and not fault:
        discard_local_after(tier, step=start.step)
    return start


def _start_from(
    checkpoint: Checkpoint | None,
    config: RunConfig,
    saved_state: Mapping[str, Any],
    *,
    resume: bool | None,
    messages: list[str],
) -> RunStart:
    """Start from the checkpoint that was found, or from the beginning if the run has none."""
    directory = config.run.directory / "checkpoints"
    if checkpoint is None:
        if resume:
            raise ConfigError(f"--resume, but {directory} contains no whole checkpoint{_because(messages)}")
        if list_checkpoints(directory) or list_unusable(directory):
            raise ConfigError(f"{directory} contains checkpoints, but none is whole{_because(messages)}")
        start = fresh_start(config)
        start.events.extend(("checkpoint_skipped", text) for text in messages)
        return start
    if resume is False:
        raise _no_resume_error(config, checkpoint.path)
    check_is_training(checkpoint.path, checkpoint.state)
    loop, changes = loop_state(config, checkpoint.state)
    changes = [*check_same_run(checkpoint.path, checkpoint.state, saved_state), *changes]
    events: list[tuple[EventKind, str]] = [("checkpoint_skipped", text) for text in messages]
    events += [("setting_changed", text) for text in changes]
    events.append(("resumed", f"resumed from {checkpoint.path} (step {loop.step:,})"))
    bases = with_bases(checkpoint)[1:]
    return RunStart(loop, checkpoint, events, bases[0] if bases else None)


def fresh_start(config: RunConfig) -> RunStart:
    """Start from the first sample, with weights of the seed or of run.start_from. Collective over all ranks."""
    weights = starting_weights(config)
    events: list[tuple[EventKind, str]] = []
    if weights is not None:
        events.append(("started_from", f"weights of {weights.path}"))
        if cut := cut_layers(weights, config):
            events.append(("started_from", cut))
    state = LoopState(0, SkippedData.stated(config.data.skip), SpikeDetector(config.spike))
    return RunStart(state, None, events, weights)


def check_is_training(path: Path, saved: Mapping[str, Any]) -> None:
    """ConfigError: the checkpoint holds no state of a training run, such as the one of an imported model."""
    needed = ("config", "data", "tokenizer", "step", "samples_seen", "loop", "optimizer_steps")
    missing = [key for key in needed if key not in saved]
    if missing:
        raise ConfigError(
            f"{path} holds no state of a training run ({', '.join(missing)} missing), so training cannot resume from "
            f"it. Start a new run from its weights: run.start_from = '{path}' and another --run.directory."
        )


def loop_state(config: RunConfig, saved: Mapping[str, Any]) -> tuple[LoopState, list[str]]:
    """The loop's part of a checkpoint's state under the current recipe, and messages about a changed data.skip."""
    step, ramp, seq_len = int(saved["step"]), config.batch.ramp, config.data.seq_len
    state = LoopState.from_json(saved["loop"], step=step, spike=config.spike)
    state.skipped, messages = resumed(
        state.skipped,
        config.data.skip,
        samples_read=int(saved["samples_seen"]),
        step_of=lambda sample: ramp.steps_to((sample + 1) * seq_len),
    )
    return state, messages


def check_same_run(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return messages about changed settings.

    ConfigError if model, batch, adapter, data, the optimizer's tensors, or the objective's kind or rewards changed.
    """
    for section in ("model", "batch", "adapter"):
        before, after = (
            {key: value for key, value in (state["config"].get(section) or {}).items() if key != "micro_batch_size"}
            for state in (saved, now)
        )
        changes = changed_keys(before, after, prefix=f"{section}.")
        if changes:
            raise ConfigError(
                f"{path} was saved with another configuration ({'; '.join(changes)}). Restore these values, or use "
                f"another --run.directory."
            )
    _check_same_optimizer(path, saved, now)
    _check_same_objective(path, saved, now)
    differences = fingerprint_differences(saved["data"], now["data"])
    if saved["tokenizer"] != now["tokenizer"]:
        differences.append(f"another tokenizer in {now['config']['data']['tokenizer']}")
    if differences:
        raise ConfigError(
            f"{path} was trained on other data than the recipe has now ({'; '.join(differences)}). Restore it, or use "
            f"another --run.directory."
        )
    return [
        f"changed since the checkpoint: {change}"
        for change in changed_keys(with_defaults(saved["config"]), now["config"])
    ]


def _check_same_optimizer(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError if the optimizer keeps other tensors than the checkpoint holds."""
    defaults = {"kind": OptimizerConfig.kind, "frozen": list(OptimizerConfig.frozen)}  # older versions lack the keys
    before, after = ({**defaults, **state["config"].get("optimizer", {})} for state in (saved, now))
    changes = changed_keys(
        {key: before[key] for key in defaults}, {key: after[key] for key in defaults}, prefix="optimizer."
    )
    if changes:
        raise ConfigError(
            f"{path} was saved with another optimizer ({'; '.join(changes)}), and holds no state for this one. Restore "
            f"these values, or start a new run from its weights: run.start_from = '{path}' and another --run.directory."
        )


def _check_same_objective(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError if the run has learned something else so far: another kind of objective, or other rewards.

    The folder of a reward's run may have moved: programs with rewards recognise its checkpoint by a digest.
    """

    def learned(state: Mapping[str, Any]) -> dict[str, Any]:
        objective = state["config"].get("objective", {})
        rewards = [
            {key: value for key, value in source.items() if key != "run" or not value}
            for source in objective.get("rewards", [])
        ]
        return {"kind": objective.get("kind", DEFAULT), "rewards": rewards}

    changes = changed_keys(learned(saved), learned(now), prefix="objective.")
    if changes:
        raise ConfigError(
            f"{path} was saved with another objective ({'; '.join(changes)}). Restore these values, or start a new run "
            f"from its weights: run.start_from = '{path}' and another --run.directory."
        )


def _because(messages: list[str]) -> str:
    return f": {'; '.join(messages)}" if messages else ""


def known_restart(mine: Restart | None) -> Restart | None:
    """The restart that any rank knows of, or None at a first start. Collective over all ranks.

    torchrun counts a failure only on the node of the rank that failed. On other nodes it starts its ranks again as if
    for the first time.
    """

    def most(known: list[Restart | None]) -> Restart | None:
        return max(filter(None, known), key=lambda restart: restart.count, default=None)

    return combine(mine, most, None)
