"""What there is to say of a run in figures, for a terminal, a page and a program alike; reads and draws nothing."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal, cast

import numpy as np

from gpt.telemetry.console import human_count, human_duration
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.goodput import NAMES, ProcessTime
from launch.runs.history import Event, RunHistory

RECENT = 100  # logged steps over which speeds are a median

Meaning = Literal["fault", "warning", "restart", "checkpoint", "note"]
KINDS: dict[EventKind, Meaning] = {
    "checkpoint_estimate": "note",
    "checkpoint_failed": "fault",
    "checkpoint_saved": "checkpoint",
    "checkpoint_skipped": "fault",
    "data_damaged": "fault",
    "ended": "note",
    "fast_checkpoint_failed": "fault",
    "hang": "fault",
    "replica_mismatch": "fault",
    "restart": "restart",
    "resumed": "restart",
    "started_from": "note",
    "rewind": "warning",
    "rewind_refused": "warning",
    "setting_changed": "note",
    "spike": "warning",
    "step_skipped": "fault",
    "stopped": "fault",
    "straggler": "warning",
    "straggler_gone": "note",
    "warning": "warning",
}


# Kinds that runs of earlier versions have in their events.jsonl, under today's name.
FORMER_KINDS: dict[str, EventKind] = {"copies_differ": "replica_mismatch"}


def meaning_of(kind: str) -> Meaning:
    """What a kind of event means to an operator; one that a later version left is a note."""
    return KINDS.get(FORMER_KINDS.get(kind, cast(EventKind, kind)), "note")


def news(history: RunHistory) -> list[Event]:
    """The events that are more than a save, or what it will need."""
    return [event for event in history.events if event.kind not in ("checkpoint_saved", "checkpoint_estimate")]


def word_of(event: Event) -> str:
    """What happened, in a word or two; of a rank that the watchdog blames, what it found."""
    finding = event.fields.get("finding") if event.kind == "hang" else None
    return f"rank {finding}" if finding in ("died", "failed", "stopped") else event.kind.replace("_", " ")


def text_of(event: Event) -> str:
    """What is told of it, and where the stacks of a hang lie."""
    reports = event.fields.get("reports") if event.kind == "hang" else None
    return f"{event.text}; stacks in {reports}" if isinstance(reports, str) else event.text


ENDS = {  # as train_summary.json has them, but for the last token
    "signal": "stopped by a signal; the same command goes on",
    "stop_after_s": "stopped when its time was over; the same command goes on",
    "target_loss": "finished: it reached its target loss",
}


def status(history: RunHistory, *, now: float) -> str:
    """Whether it is done, stopped, or when it was last heard of."""
    total, seen = history.setting("train", "total_tokens"), history.last("tokens_seen")
    if isinstance(total, int) and seen is not None and seen >= total:
        return "finished"
    if history.summary.get("step") == history.last_step and history.summary.get("ended") in ENDS:
        return ENDS[history.summary["ended"]]
    heard = [event.time for event in history.events] + [stored.written_time for stored in history.checkpoints]
    if history.account is not None:
        heard += [process.ended_time for process in history.account.processes]
    return f"not finished; last heard of {human_duration(max(0.0, now - max(heard)))} ago" if heard else "not finished"


def headline(history: RunHistory) -> list[tuple[str, str, str]]:
    """The figures that come first: (what, value, note). Those that the run has not written are left out."""
    found: list[tuple[str, str, str]] = [("step", f"{history.last_step:,}", "")]
    if (seen := history.last("tokens_seen")) is not None:
        total = history.setting("train", "total_tokens")
        share = f"{seen / total:.1%} of {human_count(total)}" if isinstance(total, int) and total > 0 else ""
        found.append(("tokens", human_count(seen), share))
    if (loss := recent(history, "loss")) is not None:
        found.append(("loss", f"{loss:.4f}", f"median of the last {n_recent(history, 'loss')} logged steps"))
    for name, value in validation_losses(history).items():
        found.append((f"validation loss, {name}", f"{value:.4f}", "the newest"))
    if (speed := recent(history, "tokens_per_s")) is not None:
        found.append(("tokens/s", human_count(speed), "median of the same"))
    if (mfu := recent(history, "mfu")) is not None:
        found.append(("MFU", f"{mfu:.1%}", "model FLOP utilisation"))
    if (memory := history.last("peak_memory_bytes")) is not None:
        found.append(("peak memory", bytes_text(memory), "of the main rank"))
    if history.account is not None:
        account = history.account
        found.append(("goodput", f"{account.goodput:.1%}", f"of {human_duration(account.wall_s)}"))
        lost = f"{account.repeated_steps:,} steps taken again" if account.repeated_steps else ""
        found.append(("restarts", f"{len(account.processes) - 1:,}", lost))
    faults = sum(meaning_of(event.kind) == "fault" for event in history.events)
    if history.events:
        found.append(("faults", f"{faults:,}", "") if faults else ("faults", "none", ""))
    return found


def validation_losses(history: RunHistory) -> dict[str, float]:
    """The newest loss of each validation corpus."""
    return {
        name.removeprefix("validation/").removesuffix("/loss"): float(series.values[-1])
        for name, series in history.metrics.items()
        if name.startswith("validation/") and name.endswith("/loss")
    }


def recent(history: RunHistory, name: str) -> float | None:
    series = history.metrics.get(name)
    return None if series is None else float(np.median(series.values[-RECENT:]))


def n_recent(history: RunHistory, name: str) -> int:
    return min(RECENT, len(history.metrics[name].values))


def start_up_medians(processes: Sequence[ProcessTime]) -> dict[str, float]:
    """From the start of a process to its first step, in seconds by part: the median over those that took one."""
    started = [process for process in processes if process.first_step_s is not None]
    names = dict.fromkeys(name for process in started for name in process.start_up)
    parts = {name: median(process.start_up.get(name, 0.0) for process in started) for name in names}
    firsts = [process.first_step_s for process in started if process.first_step_s is not None]
    return parts | ({"first step": median(firsts)} if firsts else {})


def bytes_text(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:,.2f} TiB"


def seconds_text(s: float) -> str:
    return f"{s:.2f} s" if s < 60 else human_duration(s)


def time_text(at: float) -> str:
    """Local time with its zone's offset, as the log of a cluster has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))
    except (ValueError, OverflowError, OSError):  # no clock ever showed that
        return f"{at:g}"


def as_json(history: RunHistory, *, now: float) -> dict[str, Any]:
    """For programs: what the terminal and the page show, in plain units."""
    account = history.account
    facts: dict[str, Any] = {
        "run": str(history.directory),
        "status": status(history, now=now),
        "step": history.last_step,
        "tokens_seen": history.last("tokens_seen"),
        "loss": history.last("loss"),
        "validation_loss": validation_losses(history),
        "tokens_per_s": recent(history, "tokens_per_s"),
        "mfu": recent(history, "mfu"),
        "peak_memory_bytes": history.last("peak_memory_bytes"),
        "events": dict(Counter(event.kind for event in history.events)),
        "checkpoints": [
            {"step": stored.step, "name": stored.name, "size_bytes": stored.size_bytes}
            for stored in history.checkpoints
        ],
        "problems": history.problems,
    }
    if account is not None:
        facts |= {
            "goodput": account.goodput,
            "wall_s": account.wall_s,
            "seconds": {name: account.by_name[name] for name in NAMES},
            "repeated_steps": account.repeated_steps,
            "start_up_median_s": start_up_medians(account.processes),
            "processes": [
                {
                    "host": process.host,
                    "world_size": process.world_size,
                    "restart_count": process.restart_count,
                    "from_step": process.from_step,
                    "step": process.step,
                    "started_time": process.started_time,
                    "down_s": process.down_s,
                    "elapsed_s": process.elapsed_s,
                    "start_up_s": process.start_up,
                    "first_step_s": process.first_step_s,
                }
                for process in account.processes
            ],
        }
    return facts
