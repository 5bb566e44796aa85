"""Whether a run's checkpoints will fit, asked before it trains; it deletes nothing and saves nothing."""

from pathlib import Path

from gpt.errors import ConfigError, DiskFull
from gpt.telemetry.event_log import EventKind
from gpt.training.config import CheckpointConfig
from gpt.training.engine import Engine, SaveEstimate
from gpt.training.run import Run
from gpt.training.saver import FAST_KEPT
from parallel.checkpoint.folders import list_checkpoints


def check_space(run: Run, engine: Engine, *, step: int) -> list[tuple[EventKind, str]]:
    """Events to tell: what a checkpoint needs, and a warning where not all that are to be kept will fit.

    The host memory that saves in the background need is taken here, too.

    Collective over all ranks. ConfigError on all when not even one fits; DiskFull where a run goes on, which had room.
    """
    state: dict[str, object] = {**run.saved_state, "step": run.steps, "tokens_seen": 0, "samples_seen": 0, "loop": {}}
    found = engine.checkpoints.shared.estimate(run.checkpoints, state=state, step=run.steps)
    kept_already = list_checkpoints(run.checkpoints)
    error = DiskFull if step > 0 else ConfigError
    events = _first_tier(run, found, kept=checkpoints_at_once(run), there=len(kept_already), error=error)
    if run.fast_checkpoints is not None:
        fast = engine.checkpoints.local.estimate(run.fast_checkpoints, state=state, step=run.steps)
        events += _second_tier(run.checkpoint, fast, held=step > 0, error=error)
        engine.checkpoints.local.prepare(run.fast_checkpoints)
    if run.checkpoint.in_background and run.checkpoint.every_tokens is not None:
        engine.checkpoints.shared.prepare(run.checkpoints)
    return events


def checkpoints_at_once(run: Run) -> int:
    """The most checkpoints that lie in the directory at one time: those kept, and the one being written."""
    config, tokens = run.checkpoint, run.batch.tokens_seen(run.steps)
    saves = 1 if config.every_tokens is None else -(-tokens // config.every_tokens)
    for_ever = 0 if config.keep_every_tokens is None else tokens // config.keep_every_tokens
    return min(saves, config.keep_last + 1 + for_ever)


def _first_tier(
    run: Run, found: SaveEstimate, *, kept: int, there: int, error: type[ConfigError]
) -> list[tuple[EventKind, str]]:
    size, free, needed = found.size_bytes, found.free_bytes, max(0, kept - there) * found.size_bytes
    if size > free:
        raise error(
            f"run.directory: a checkpoint is {_gigabytes(size)}, and {_gigabytes(free)} are free in {run.checkpoints}; "
            f"make room, or name another run.directory"
        )
    events: list[tuple[EventKind, str]] = [
        (
            "checkpoint_estimate",
            f"checkpoints: {_gigabytes(size)} each, about {found.write_s:.1f} s to write; at most {kept} at a time, "
            f"{there} are there, so {_gigabytes(needed)} more; {_gigabytes(free)} are free",
        )
    ]
    if needed > free:
        fit = there + free // size
        events.append(
            (
                "warning",
                f"of the {kept} checkpoints that checkpoint.keep_last and checkpoint.keep_every_tokens ask for, only "
                f"{fit} will fit into {run.checkpoints}; keep fewer, or make room before then",
            )
        )
    return events


def _second_tier(
    config: CheckpointConfig, fast: SaveEstimate, *, held: bool, error: type[ConfigError]
) -> list[tuple[EventKind, str]]:
    needed = fast.size_bytes * (1 if held else FAST_KEPT + 1)
    if needed > fast.free_bytes:
        raise error(
            f"checkpoint.fast_directory = '{config.fast_directory}' needs room for {FAST_KEPT + 1} times "
            f"{_gigabytes(fast.size_bytes)} of the ranks that share {fast.where}, where {_gigabytes(fast.free_bytes)} "
            f"are free; name a larger disk, or leave the second tier out"
        )
    text = f"second tier: {_gigabytes(fast.size_bytes)} each time in {Path(config.fast_directory)} of each node"
    return [("checkpoint_estimate", text)]


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.2f} MB"
