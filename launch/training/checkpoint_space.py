"""Check before training whether the run's checkpoints will fit on disk."""

from pathlib import Path

from gpt.errors import ConfigError, DiskFull
from gpt.telemetry.event_log import EventKind
from gpt.training.config import CheckpointConfig
from gpt.training.engine import Engine, SaveEstimate
from gpt.training.run import Run
from gpt.training.saver import LOCAL_KEPT
from parallel.checkpoint.folders import list_checkpoints


def check_space(run: Run, engine: Engine, *, step: int) -> list[tuple[EventKind, str]]:
    """Return events to log: the size of a checkpoint, and a warning if not all that will be kept fit.

    Also allocates the host memory of background saves. Collective over all ranks. ConfigError on all ranks if not even
    one checkpoint fits; DiskFull instead if the run resumes, since there was enough space at its first start.
    """
    state: dict[str, object] = {**run.saved_state, "step": run.steps, "tokens_seen": 0, "samples_seen": 0, "loop": {}}
    found = engine.checkpoints.shared.estimate(run.checkpoints, state=state, step=run.steps)
    present = len(list_checkpoints(run.checkpoints))
    error = DiskFull if step > 0 else ConfigError
    events = _check_shared(run, found, kept=max_checkpoints(run), present=present, error=error)
    if run.local_checkpoints is not None:
        found = engine.checkpoints.local.estimate(run.local_checkpoints, state=state, step=run.steps)
        events += _check_local(run.checkpoint, found, resumes=step > 0, error=error)
        engine.checkpoints.local.prepare(run.local_checkpoints)
    if run.checkpoint.in_background and run.checkpoint.every_tokens is not None:
        engine.checkpoints.shared.prepare(run.checkpoints)
    return events


def max_checkpoints(run: Run) -> int:
    """The largest number of checkpoints in the directory at one time: those kept, and the one being written."""
    config, tokens = run.checkpoint, run.batch.tokens_seen(run.steps)
    every_tokens = config.every_tokens or (
        1 if config.every_s else tokens
    )  # nobody knows how many steps take `every_s`
    saves = -(-tokens // every_tokens)
    permanent = 0 if config.keep_every_tokens is None else tokens // config.keep_every_tokens
    return min(saves, config.keep_last + 1 + permanent + int(config.keep_best is not None))


def _check_shared(
    run: Run, found: SaveEstimate, *, kept: int, present: int, error: type[ConfigError]
) -> list[tuple[EventKind, str]]:
    size, free, needed = found.size_bytes, found.free_bytes, max(0, kept - present) * found.size_bytes
    if size > free:
        raise error(
            f"run.directory: a checkpoint is {_gigabytes(size)}, and {_gigabytes(free)} are free in {run.checkpoints}. "
            f"Free some space, or use another run.directory."
        )
    events: list[tuple[EventKind, str]] = [
        (
            "checkpoint_estimate",
            f"checkpoints: {_gigabytes(size)} each, about {found.write_s:.1f} s to write; at most {kept} at a time, "
            f"{present} exist, so {_gigabytes(needed)} more; {_gigabytes(free)} are free",
        )
    ]
    if needed > free:
        fit = present + free // size
        events.append(
            (
                "warning",
                f"checkpoint.keep_last and checkpoint.keep_every_tokens keep up to {kept} checkpoints, but only {fit} "
                f"fit into {run.checkpoints}; keep fewer, or free some space before then",
            )
        )
    return events


def _check_local(
    config: CheckpointConfig, found: SaveEstimate, *, resumes: bool, error: type[ConfigError]
) -> list[tuple[EventKind, str]]:
    needed = found.size_bytes * (1 if resumes else LOCAL_KEPT + 1)
    if needed > found.free_bytes:
        raise error(
            f"checkpoint.fast_directory = '{config.fast_directory}' needs space for {LOCAL_KEPT + 1} times "
            f"{_gigabytes(found.size_bytes)} of the ranks that share {found.where}, where "
            f"{_gigabytes(found.free_bytes)} are free. Use a larger disk, or no local tier."
        )
    text = f"local tier: {_gigabytes(found.size_bytes)} each time in {Path(config.fast_directory)} of each node"
    return [("checkpoint_estimate", text)]


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.2f} MB"
