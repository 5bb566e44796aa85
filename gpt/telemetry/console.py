"""Print the progress of a run: on a terminal a table with a bar below it, elsewhere one plain line per logged step.

A row of the table stays. Steps between two rows only move the bar, which is redrawn. screen.py lays out both.
"""

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from gpt.errors import escaped, one_line
from gpt.telemetry.screen import (
    Column,
    Values,
    bar,
    bar_text,
    cells_of,
    columns_for,
    header,
    human_duration,
    policy_values,
    row,
    row_every,
    sample_lines,
    step_field,
    step_line,
    wrapped,
)

Tone = Literal["", "warning", "error"]

_MAX_VALUES = 12  # on one line, since a mixture may have a thousand corpora
_ROW_S = 60.0  # a row comes at least this often
_BAR_S = 0.1  # the bar is redrawn at most this often
_HEADER_EVERY_ROWS = 50
# Values of a run's health. They are in metrics.jsonl; a confirmed fault is an event, and the end shows the goodput.
_NOT_SHOWN = ("time/", "straggler/", "epochs/", "goodput", "memory/")
_COLORS = {"title": "1", "evaluation": "36", "warning": "33", "error": "31", "prompt": "1"}
_HIGH_MFU = (
    "an MFU above 100% is shown as '-': the peak speed that it is relative to is too low. On a CPU, the run measures "
    "it at its start. Set run.peak_flops_per_s to that of one device"
)


class Console:
    """Prints the lines. `interactive` None checks whether standard output is a terminal that can redraw a line."""

    def __init__(self, *, total_steps: int | None, total_tokens: int | None, interactive: bool | None = None) -> None:
        self.total_steps, self._total_tokens = total_steps, total_tokens
        can_redraw, has_color = terminal_abilities()
        self.interactive = can_redraw if interactive is None else interactive
        self._has_color = has_color and self.interactive
        self._bar_letters = "━─" if _can_print("━─") else "#-"
        self._tokens_left, self._steps_left = TimeLeft(total_tokens), TimeLeft(total_steps)
        self._columns: tuple[Column, ...] = ()
        self._keys: set[str] = set()  # of the columns that the run has values for
        self._rows_since_header = 0
        self._row_step, self._row_at = -1, 0.0  # of the newest row
        self._last: tuple[int, dict[str, str]] | None = None  # the newest step, while it has no row
        self._bar, self._bar_at = "", 0.0
        self._explained_mfu = False

    def step(self, step: int, values: Values) -> None:
        """Show a step. Values without a loss or a reward are those of an evaluation or of the run's health."""
        if "loss" not in values and not policy_values(values):
            self._show_others(step, values)
            return
        now = time.monotonic()
        left_s = self._steps_left.update(step, now=now)
        if "tokens_seen" in values and self._tokens_left.total is not None:
            left_s = self._tokens_left.update(values["tokens_seen"], now=now)
        if values.get("mfu", 0.0) > 1 and not self._explained_mfu:
            self._explained_mfu = True
            self.message(_HIGH_MFU, tone="warning")
        if self.interactive:
            self._show_in_table(step, values, left_s, now)
            return
        left = None
        if self._steps_left.total is not None or self._tokens_left.total is not None:
            left = "-" if left_s is None else human_duration(left_s)
        self._write(step_line(step, values, total_steps=self.total_steps, left=left) + "\n")

    def message(self, text: str, *, tone: Tone = "") -> None:
        """Print lines that stay, above the bar if there is one. Control characters are escaped."""
        lines = escaped(text).split("\n")
        if self.interactive:
            lines = [part for line in lines for part in wrapped(line, width=self._width())]
        self._print([self._colored(line, tone) for line in lines])

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Print a sampled text, which begins with its prompt, after a line that names the prompt."""
        named = f"after '{one_line(prompt)[:60]}'" if prompt else "without a prompt"
        lines = [self._colored(f"sample at step {step:,}, {named}:", "title")]
        width = max(20, self._width() - 4) if self.interactive else None
        for of_prompt, written in sample_lines(prompt, text, width=width):
            lines.append(f"  | {self._colored(of_prompt, 'prompt')}{written}".rstrip())
        self._print(lines)

    def close(self) -> None:
        """Print the row of the last step if it has none, and remove the bar."""
        if self._last is not None:
            self._print_row(*self._last)
        if self._bar:
            self._bar = ""
            self._write("\r\x1b[K")

    def _show_others(self, step: int, values: Values) -> None:
        """Show the values of an evaluation in rows of the table, others on a line. Leave out those of no interest."""
        shown = {key: value for key, value in values.items() if not key.startswith(_NOT_SHOWN)}
        if self.interactive:
            for name, (loss, others) in take_evaluations(shown).items():
                cells = {"step": f"{step:,}", "validation": f"{loss:.4f}"}
                self._keys |= {"step", "loss", "validation"}
                self._print_row(step, cells, after="  ".join([name, *others]), color="evaluation")
        if not shown:
            return
        text = "  ".join(f"{key} {value:.5g}" for key, value in list(shown.items())[:_MAX_VALUES])
        if len(shown) > _MAX_VALUES:
            text += f"  and {len(shown) - _MAX_VALUES} more, in metrics.jsonl"
        self.message(f"{step_field(step, self.total_steps)}  {text}")

    def _show_in_table(self, step: int, values: Values, left_s: float | None, now: float) -> None:
        cells = cells_of(step, values, left_s=left_s)
        self._keys |= {"step", "loss", *cells, *(("time_left",) if self.total_steps is not None else ())}
        if not policy_values(values):  # a policy has no validation
            self._keys.add("validation")
        self._last = (step, cells)
        is_last = step == self.total_steps
        every = row_every(self.total_steps)
        passed = every is not None and step // every != self._row_step // every
        done = values["tokens_seen"] / self._total_tokens if self._total_tokens and "tokens_seen" in values else None
        if done is None and self.total_steps:
            done = step / self.total_steps
        text = bar_text(step, values, total_steps=self.total_steps, left_s=left_s)
        self._bar = bar(done, text, width=self._width(), letters=self._bar_letters)
        if passed or is_last or self._row_step < 0 or now - self._row_at >= _ROW_S:
            self._row_at = now
            self._print_row(step, cells, color="" if math.isfinite(values.get("loss", 0.0)) else "error")
        elif now - self._bar_at >= _BAR_S:
            self._bar_at = now
            self._write(f"\r{self._bar}\x1b[K")

    def _print_row(self, step: int, cells: Mapping[str, str], *, after: str = "", color: str = "") -> None:
        """Print a row, below a header if the columns changed or the last header is far above."""
        columns = columns_for(self._keys, width=self._width(), total_steps=self.total_steps)
        lines = []
        if columns != self._columns or self._rows_since_header >= _HEADER_EVERY_ROWS:
            self._columns, self._rows_since_header = columns, 0
            lines.append(self._colored(header(columns), "title"))
        self._rows_since_header += 1
        if "loss" in cells or "reward" in cells:
            self._row_step, self._last = step, None
        lines.append(self._colored(escaped(f"{row(columns, cells)}  {after}".rstrip()), color))
        self._print(lines)

    def _print(self, lines: Sequence[str]) -> None:
        """Print lines that stay, above the bar if there is one."""
        text = "".join(f"{line}\n" for line in lines)
        self._write(f"\r\x1b[K{text}{self._bar}" if self.interactive else text)

    def _colored(self, text: str, color: str) -> str:
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if self._has_color and color and text else text

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1  # a terminal may begin a new line after its last column

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


def for_terminal(line: str) -> str:
    """Break a line between words if standard output is a terminal; elsewhere it stays one line."""
    width = shutil.get_terminal_size().columns - 1
    return "\n".join(wrapped(line, width=width)) if sys.stdout.isatty() else line


def terminal_abilities() -> tuple[bool, bool]:
    """Return whether standard output is a terminal that can redraw a line, and whether it has colours.

    TERM=dumb can do neither; NO_COLOR turns colours off.
    """
    from rich.console import Console as Terminal  # here: only the main rank of a run needs it

    terminal = Terminal(file=sys.stdout)
    can_redraw = sys.stdout.isatty() and not terminal.is_dumb_terminal
    return can_redraw, can_redraw and terminal.color_system is not None and not terminal.no_color


def take_evaluations(values: dict[str, float | int]) -> dict[str, tuple[float, list[str]]]:
    """Take the values validation/NAME/... out of `values`. Return the loss of each corpus and its other values as text.

    The perplexity is left out, because it is a function of the loss.
    """
    found: dict[str, tuple[float, list[str]]] = {}
    for key in [key for key in values if key.startswith("validation/") and key.endswith("/loss")]:
        name = key.removeprefix("validation/").removesuffix("/loss")
        loss = values.pop(key)
        values.pop(f"validation/{name}/perplexity", None)
        prefix = f"validation/{name}/"
        others = [other for other in values if other.startswith(prefix)]
        found[name] = loss, [f"{other.removeprefix(prefix)} {values.pop(other):.5g}" for other in others]
    return found


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
