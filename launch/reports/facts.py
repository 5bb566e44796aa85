"""The figures of a run for all three outputs of `triaxial report`: terminal, page and JSON."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal, cast

import numpy as np

from gpt.post_training.analysis.diagnosis import diagnose
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.goodput import NAMES, ProcessTime
from gpt.telemetry.screen import counted, human_count, human_duration
from launch.reports.memory import growth, memory_trends
from launch.reports.policy_health import fault_record, policy_metrics, policy_prefix
from launch.runs.figures import OF_MACHINE
from launch.runs.history import Event, RunHistory
from launch.runs.prediction import PredictedFigure, compared_figures

Meaning = Literal["fault", "warning", "restart", "checkpoint", "note"]
KINDS: dict[EventKind, Meaning] = {
    "best": "note",
    "calibrated": "note",
    "heads_fitted": "note",
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
    """The meaning of a kind of event for an operator. A kind that a later version wrote is a note."""
    return KINDS.get(FORMER_KINDS.get(kind, cast(EventKind, kind)), "note")


def news(history: RunHistory) -> list[Event]:
    """All events except successful saves and estimates of their size."""
    return [event for event in history.events if event.kind not in ("checkpoint_saved", "checkpoint_estimate")]


def word_of(event: Event) -> str:
    """The event in a word or two; for a hang, the state in which the watchdog found the rank."""
    finding = event.fields.get("finding") if event.kind == "hang" else None
    return f"rank {finding}" if finding in ("died", "failed", "stopped") else event.kind.replace("_", " ")


def text_of(event: Event) -> str:
    """The event's text; for a hang, with the folder of the stack traces."""
    reports = event.fields.get("reports") if event.kind == "hang" else None
    return f"{event.text}; stacks in {reports}" if isinstance(reports, str) else event.text


ENDS = {  # the values of `ended` in train_summary.json, except the one for the last token
    "signal": "stopped by a signal; the same command continues the run",
    "interrupt": "interrupted; the same command continues the run",
    "stop_after_s": "stopped at train.stop_after_s; the same command continues the run",
    "target_loss": "finished: it reached its target loss",
}


def status(history: RunHistory, *, now: float) -> str:
    """Finished, stopped and why, or not finished and how long ago the run wrote its last file."""
    total, seen = history.setting("train", "total_tokens"), history.last("tokens_seen")
    if isinstance(total, int) and seen is not None and seen >= total:
        return "finished"
    if history.summary.get("step") == history.last_step and history.summary.get("ended") in ENDS:
        return ENDS[history.summary["ended"]]
    active = [event.time for event in history.events] + [stored.written_time for stored in history.checkpoints]
    if history.account is not None:
        active += [process.ended_time for process in history.account.processes]
    return f"not finished; last active {human_duration(max(0.0, now - max(active)))} ago" if active else "not finished"


def headline(history: RunHistory) -> list[tuple[str, str, str]]:
    """The most important figures: (name, value, note). Figures that the run has not written are left out."""
    found: list[tuple[str, str, str]] = [("step", f"{history.last_step:,}", "")]
    if (seen := history.last("tokens_seen")) is not None:
        total = history.setting("train", "total_tokens")
        share = f"{seen / total:.1%} of {human_count(total)}" if isinstance(total, int) and total > 0 else ""
        found.append(("tokens", human_count(seen), share))
    if (loss := recent(history, "loss")) is not None:
        found.append(("loss", f"{loss:.4f}", _median_of(n_recent(history, "loss"))))
    for name, value in validation_losses(history).items():
        found.append((f"validation loss, {name}", f"{value:.4f}", "newest"))
    found += policy_figures(history)
    if (speed := recent(history, "tokens_per_s")) is not None:
        found.append(("tokens/s", human_count(speed), "median of the same"))
    against = {figure.name: against_prediction(figure) for figure in compared_figures(history)}
    if (step := recent(history, "step_s")) is not None and "step time" in against:
        found.append(("step time", f"{step:.3g} s", against["step time"]))
    if (mfu := recent(history, "mfu")) is not None:
        wrong = "above 100%: the peak that it is relative to is too low. Set run.peak_flops_per_s"
        found.append(
            ("MFU", "-", wrong) if mfu > 1 else ("MFU", f"{mfu:.1%}", against.get("MFU", "model FLOP utilisation"))
        )
    if (memory := history.last("peak_memory_bytes")) is not None:
        notes = [against.get("peak memory", ""), memory_trends(history)]
        found.append(("peak memory", bytes_text(memory), ", ".join(filter(None, notes)) or "of the main rank"))
    if (used := history.last(OF_MACHINE)) is not None:
        found.append(("memory in use", bytes_text(used), "on the machine of the main rank"))
    if history.account is not None:
        account = history.account
        found.append(("goodput", f"{account.goodput:.1%}", f"of {human_duration(account.wall_s)}"))
        lost = f"{counted(account.repeated_steps, 'step')} repeated" if account.repeated_steps else ""
        found.append(("restarts", f"{len(account.processes) - 1:,}", lost))
    faults = sum(meaning_of(event.kind) == "fault" for event in history.events)
    if history.events:
        found.append(("faults", f"{faults:,}", "") if faults else ("faults", "none", ""))
    return found


def _median_of(n: int) -> str:
    return "of the only logged step" if n == 1 else f"median of the last {n} logged steps"


def validation_losses(history: RunHistory) -> dict[str, float]:
    """The newest loss of each validation corpus."""
    return {
        name.removeprefix("validation/").removesuffix("/loss"): float(series.recent[-1])
        for name, series in history.metrics.items()
        if name.startswith("validation/") and name.endswith("/loss")
    }


def policy_figures(history: RunHistory) -> list[tuple[str, str, str]]:
    """Reward, KL and length of a policy: the newest medians, and where they started."""
    found = []
    metrics = policy_metrics(history.metrics)
    for name, what, unit in (("reward", "reward", ""), ("kl", "KL", "nats a response"), ("length", "length", "tokens")):
        if (series := metrics.get(name)) is not None:
            start = f"{series.start:.4g} at the start"
            found.append((what, f"{series.recent:.4g}", f"{unit}; {start}" if unit else start))
    return found


def recent(history: RunHistory, name: str) -> float | None:
    series = history.metrics.get(name)
    return None if series is None else float(np.median(series.recent))


def n_recent(history: RunHistory, name: str) -> int:
    return len(history.metrics[name].recent)


def start_up_medians(processes: Sequence[ProcessTime]) -> dict[str, float]:
    """Seconds from the start of a process to its first step, by part: medians over the processes that took a step."""
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
    """Local time with the offset of its zone, as in the logs of a cluster."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))
    except (ValueError, OverflowError, OSError):  # a damaged file may hold any number
        return f"{at:g}"


def as_json(history: RunHistory, *, now: float) -> dict[str, Any]:
    """The figures of the terminal and the page for programs, in plain units."""
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
        "memory_growth_bytes_per_1000_steps": growth(history),
        "events": dict(Counter(event.kind for event in history.events)),
        "checkpoints": [
            {"step": stored.step, "name": stored.name, "size_bytes": stored.size_bytes}
            for stored in history.checkpoints
        ],
        "problems": history.problems,
    }
    if (predicted := prediction_json(history)) is not None:
        facts["prediction"] = predicted
    if policy_prefix(history.metrics) is not None:
        facts["policy_faults"] = [fault_record(found) for found in diagnose(policy_metrics(history.metrics))]
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


def against_prediction(figure: PredictedFigure) -> str:
    """The predicted value of a figure, and how the measured one compares with it."""
    outside = {None: "", True: ", inside the 90% interval", False: ", outside the 90% interval"}[figure.inside]
    return f"predicted {figure_text(figure.name, figure.predicted)}, measured {figure.ratio:.2f} times{outside}"


def prediction_json(history: RunHistory) -> dict[str, Any] | None:
    """The prediction, and measured figures with their ratio, in seconds, bytes and shares of one."""
    if history.prediction is None:
        return None
    measured = {
        figure.name.replace(" ", "_").lower(): {"measured": figure.measured, "ratio": figure.ratio}
        for figure in compared_figures(history)
    }
    return {**history.prediction.as_json(), "measured": measured}


def figure_text(name: str, value: float) -> str:
    """A predicted or measured figure with its unit."""
    if name == "MFU":
        return f"{value:.1%}"
    if name == "peak memory":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:.3g} s"
