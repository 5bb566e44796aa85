"""Print the progress of a run: a live line on a terminal, elsewhere one plain line per logged step.

It shows the values loss, gradient_norm, learning_rate, tokens_per_s, mfu (a fraction) and tokens_seen, if given, and
the time left.
"""

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

Values = Mapping[str, float | int]


@dataclass(frozen=True)
class Field:
    """One value in two forms: aligned, for lines under each other, and short, for a narrow terminal."""

    aligned: str
    short: str


# Values to drop if a terminal is too narrow for the short form, first to last.
_DROPPED_FIRST = ("mfu", "learning_rate", "gradient_norm", "tokens_seen", "time_left", "tokens_per_s")

_MAX_VALUES = 12  # on the line of an evaluation or of epochs, since a mixture may have a thousand corpora


class Console:
    """Prints the lines. `interactive` None checks whether standard output is a terminal."""

    def __init__(self, *, total_steps: int | None, total_tokens: int | None, interactive: bool | None) -> None:
        self.total_steps = total_steps
        self.interactive = sys.stdout.isatty() if interactive is None else interactive
        self._tokens_left = TimeLeft(total_tokens)
        self._steps_left = TimeLeft(total_steps)
        self._live_line = ""

    def step(self, step: int, values: Values) -> None:
        """Show a step. Values without a loss, such as those of an evaluation, get a separate, permanent line."""
        if "loss" not in values:
            shown = {
                key: value for key, value in values.items() if not key.startswith("time/")
            }  # goodput is their summary
            others = "  ".join(f"{key} {value:.5g}" for key, value in list(shown.items())[:_MAX_VALUES])
            if len(shown) > _MAX_VALUES:
                others += f"  and {len(shown) - _MAX_VALUES} more, in metrics.jsonl"
            self.message(f"{_step_field(step, self.total_steps).aligned}  {others}")
            return
        now = time.monotonic()
        left_s = self._steps_left.update(step, now=now)
        if "tokens_seen" in values and self._tokens_left.total is not None:
            left_s = self._tokens_left.update(values["tokens_seen"], now=now)
        fields = step_fields(step, values, total_steps=self.total_steps)
        if self._steps_left.total is not None or self._tokens_left.total is not None:
            left = "-" if left_s is None else human_duration(left_s)
            fields["time_left"] = Field(f"{left:>7} left", f"{left.replace(' ', '')} left")
        if self.interactive:
            self._live_line = fit(fields, width=shutil.get_terminal_size().columns - 1)
            self._write(f"\r{self._live_line}\x1b[K")
        else:
            self._write("  ".join(field.aligned for field in fields.values()) + "\n")

    def message(self, text: str) -> None:
        """Print a permanent line, above the live line if there is one."""
        if self.interactive:
            self._write(f"\r\x1b[K{text}\n{self._live_line}")
        else:
            self._write(f"{text}\n")

    def close(self) -> None:
        """Keep the live line, and move the cursor below it."""
        if self._live_line:
            self._live_line = ""
            self._write("\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a program's own stream may fail; the streams of output.py do not
            sys.stdout.write(text)
            sys.stdout.flush()


class TimeLeft:
    """Estimates the time left from the speed of the last updates, including evaluations and saves between them."""

    def __init__(self, total: int | None, *, decay: float = 0.95) -> None:
        self.total = total
        self._decay = decay  # 0.95: about the last 20 updates
        self._last: tuple[float, float] | None = None  # (done, now)
        self._done = self._elapsed_s = 0.0  # decayed sums, so that an interval has a weight of its length

    def update(self, done: float, *, now: float) -> float | None:
        """Return the seconds left, or None before the second update. The first step, which compiles, does not count."""
        if self._last is not None:
            self._done = self._decay * self._done + done - self._last[0]
            self._elapsed_s = self._decay * self._elapsed_s + now - self._last[1]
        self._last = (done, now)
        if self.total is None or self._done <= 0:
            return None
        return max(0.0, self.total - done) * self._elapsed_s / self._done


def step_fields(step: int, values: Values, *, total_steps: int | None) -> dict[str, Field]:
    """Return the fields of a step in display order, without those that have no value."""
    fields = {"step": _step_field(step, total_steps)}
    if (loss := values.get("loss")) is not None:
        fields["loss"] = Field(f"loss {loss:8.4f}", f"loss {loss:.4f}")
    if (norm := values.get("gradient_norm")) is not None:
        fields["gradient_norm"] = Field(f"gradient norm {norm:8.3g}", f"grad {norm:.2g}")
    if (lr := values.get("learning_rate")) is not None:
        fields["learning_rate"] = Field(f"learning rate {lr:.2e}", f"lr {lr:.1e}".replace("e-0", "e-"))
    if (speed := values.get("tokens_per_s")) is not None:
        fields["tokens_per_s"] = Field(f"{human_count(speed):>5} tokens/s", f"{human_count(speed)}/s")
    if (mfu := values.get("mfu")) is not None:
        fields["mfu"] = Field(f"MFU {mfu:6.1%}", f"MFU {mfu:.0%}")
    if (seen := values.get("tokens_seen")) is not None:
        fields["tokens_seen"] = Field(f"{human_count(seen):>5} tokens", f"{human_count(seen)} tok")
    return fields


def fit(fields: Mapping[str, Field], *, width: int) -> str:
    """Fit the fields into `width` columns: aligned if possible, else short, else with fewer fields."""
    line = "  ".join(field.aligned for field in fields.values())
    if len(line) <= width:
        return line
    shown = dict(fields)
    for name in ("", *_DROPPED_FIRST):
        shown.pop(name, None)
        line = " ".join(field.short for field in shown.values())
        if len(line) <= width:
            break
    return line[: max(width, 0)]


def human_count(n: float) -> str:
    """Format a count with three digits and a letter: 999, 1.23k, 45.6M, 300B, 1.50T."""
    for unit in ("", "k", "M", "B"):
        text = f"{n:.0f}" if unit == "" else f"{n:#.3g}".rstrip(".")
        if "e" not in text and float(text) < 1000:
            return text + unit
        n /= 1000
    return f"{n:,.2f}T"


def human_duration(seconds: float) -> str:
    """Format a duration with its two largest units: 7s, 2m 13s, 5h 04m, 3d 11h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}h"
    if hours:
        return f"{hour}h {minute:02}m"
    return f"{minute}m {second:02}s" if minutes else f"{second}s"


def _step_field(step: int, total_steps: int | None) -> Field:
    if total_steps is None:
        return Field(f"step {step:>7,}", f"{step}")
    total = f"{total_steps:,}"
    return Field(f"step {step:>{len(total)},}/{total}", f"{step}/{total_steps}")
