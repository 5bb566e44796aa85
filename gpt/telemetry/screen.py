"""Lay out the screen of a run: values as text, the columns of its table, the bar below it, and sampled texts.

Pure functions, which console.py prints. The values of a step are loss, gradient_norm, learning_rate, tokens_per_s, mfu
(a fraction) and tokens_seen, if given, and the reward and KL of a policy.
"""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpt.errors import escaped

Values = Mapping[str, float | int]


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str
    title: str
    width: int


# Columns in display order, with the width of their usual values; the step's column is as wide as the last step.
_COLUMNS = (
    Column("step", "step", 5),
    Column("tokens_seen", "tokens", 6),
    Column("loss", "loss", 7),
    Column("reward", "reward", 7),
    Column("kl", "KL", 6),
    Column("validation", "val loss", 8),
    Column("gradient_norm", "grad norm", 9),
    Column("learning_rate", "lr", 7),
    Column("tokens_per_s", "tokens/s", 8),
    Column("mfu", "MFU", 5),
    Column("time_left", "left", 7),
)
# Columns to drop on a narrow terminal, first to last. The bar below the table shows the time left and the speed too.
_DROPPED_FIRST = ("time_left", "learning_rate", "gradient_norm", "mfu", "tokens_per_s", "tokens_seen", "validation")
_POLICY_NAMES = {"reward": "reward", "kl": "KL"}
_GAP = "  "
_ROWS = 30  # at most, in a run of less than half an hour
_MIN_BAR, _MAX_BAR = 8, 40


def columns_for(keys: Collection[str], *, width: int, total_steps: int | None) -> tuple[Column, ...]:
    """Return the columns of the table: those of `keys`, as far as `width` has room. The step always has one."""
    step = Column("step", "step", len(f"{total_steps:,}") if total_steps is not None else 9)
    found = [step if column.key == "step" else column for column in _COLUMNS if column.key in keys]
    for name in _DROPPED_FIRST:
        if sum(max(column.width, len(column.title)) + len(_GAP) for column in found) - len(_GAP) <= width:
            break
        found = [column for column in found if column.key != name]
    return tuple(found)


def header(columns: Sequence[Column]) -> str:
    return _GAP.join(column.title.rjust(max(column.width, len(column.title))) for column in columns)


def row(columns: Sequence[Column], cells: Mapping[str, str]) -> str:
    """Return one row. A column without a cell stays empty."""
    texts = (cells.get(column.key, "").rjust(max(column.width, len(column.title))) for column in columns)
    return _GAP.join(texts).rstrip()


def cells_of(step: int, values: Values, *, left_s: float | None) -> dict[str, str]:
    """Return the cells of a step, by column. An MFU above 100% is not a measurement: it gets a dash."""
    cells = {"step": f"{step:,}"}
    if (seen := values.get("tokens_seen")) is not None:
        cells["tokens_seen"] = human_count(seen)
    if (loss := values.get("loss")) is not None:
        cells["loss"] = f"{loss:.4f}"
    cells |= {name: f"{value:.3g}" for name, value in policy_values(values).items()}
    if (norm := values.get("gradient_norm")) is not None:
        cells["gradient_norm"] = f"{norm:.3g}"
    if (lr := values.get("learning_rate")) is not None:
        cells["learning_rate"] = f"{lr:.1e}"
    if (speed := values.get("tokens_per_s")) is not None:
        cells["tokens_per_s"] = human_count(speed)
    if (mfu := values.get("mfu")) is not None:
        cells["mfu"] = "-" if mfu > 1 else f"{mfu:.1%}"
    if left_s is not None:
        cells["time_left"] = human_duration(left_s)
    return cells


def policy_values(values: Values) -> dict[str, float]:
    """Return the `reward` and the `kl` of an iteration of PPO or GRPO; nothing for other steps."""
    found = {}
    for kind in ("ppo", "grpo"):
        for name in ("reward", "kl"):
            if (value := values.get(f"{kind}/{name}")) is not None:
                found[name] = value
    return found


def row_every(total_steps: int | None) -> int | None:
    """Return the steps between two rows: 1, 2, 5, 10, 20, 50, ..., for at most 30 rows in a run of `total_steps`."""
    if total_steps is None:
        return None
    scale: int = 10 ** int(math.log10(max(1, total_steps / _ROWS)))
    return next(n * scale for n in (1, 2, 5, 10) if n * scale >= total_steps / _ROWS)


def bar(fraction: float | None, text: str, *, width: int, letters: str = "━─") -> str:
    """Return a bar with `text` behind it, in `width` columns. Without a fraction, or without room: the text alone.

    `letters`: of the part that is done, and of the rest.
    """
    if fraction is None:
        return text[: max(width, 0)]
    text = f" {min(fraction, 1.0):4.0%}  {text}"
    length = min(_MAX_BAR, width - len(text))
    if length < _MIN_BAR:
        return text.strip()[: max(width, 0)]
    done = math.floor(length * min(max(fraction, 0.0), 1.0))
    return letters[0] * done + letters[1] * (length - done) + text


def bar_text(step: int, values: Values, *, total_steps: int | None, left_s: float | None) -> str:
    """Return the text of the bar: step, loss, speed, time left. A policy's reward and KL come instead of its loss."""
    parts = [f"{step:,}" if total_steps is None else f"{step:,}/{total_steps:,}"]
    if policy := policy_values(values):
        parts += [f"{_POLICY_NAMES[name]} {value:.3g}" for name, value in policy.items()]
    elif (loss := values.get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (speed := values.get("tokens_per_s")) is not None:
        parts.append(f"{human_count(speed)} tokens/s")
    if left_s is not None:
        parts.append(f"{human_duration(left_s)} left")
    return _GAP.join(parts)


def sample_lines(prompt: str, text: str, *, width: int | None) -> list[tuple[str, str]]:
    """Return the lines of a sampled text, each as its part of the prompt and the part that the model wrote.

    `text` begins with the prompt. Control characters are escaped. Lines are wrapped at `width` columns, if given.
    """
    prompt_length = len(_printable(prompt))
    lines: list[tuple[str, str]] = []
    start = 0  # of the line, in characters
    for line in _printable(text).split("\n"):
        parts = [line]
        if width is not None:
            parts = textwrap.wrap(line, width, drop_whitespace=False, replace_whitespace=False) or [""]
        for part in parts:
            of_prompt = max(0, min(len(part), prompt_length - start))
            lines.append((part[:of_prompt], part[of_prompt:]))
            start += len(part)
        start += 1
    return lines


def wrapped(line: str, *, width: int) -> list[str]:
    """Break a line between words, so that a terminal breaks none. Paths and other long words stay whole."""
    whole = textwrap.wrap(line, max(width, 1), break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
    return whole or [""]


def _printable(text: str) -> str:
    return escaped(text.replace("\r\n", "\n")).replace("\t", "    ")


def step_line(step: int, values: Values, *, total_steps: int | None, left: str | None) -> str:
    """Return the plain line of a step, aligned with those of other steps. `left`: the time left, if it is known."""
    parts = [step_field(step, total_steps)]
    if (loss := values.get("loss")) is not None:
        parts.append(f"loss {loss:8.4f}")
    parts += [f"{_POLICY_NAMES[name]} {value:8.3g}" for name, value in policy_values(values).items()]
    if (norm := values.get("gradient_norm")) is not None:
        parts.append(f"gradient norm {norm:8.3g}")
    if (lr := values.get("learning_rate")) is not None:
        parts.append(f"learning rate {lr:.2e}")
    if (speed := values.get("tokens_per_s")) is not None:
        parts.append(f"{human_count(speed):>5} tokens/s")
    if (mfu := values.get("mfu")) is not None:
        parts.append("MFU      -" if mfu > 1 else f"MFU {mfu:6.1%}")
    if (seen := values.get("tokens_seen")) is not None:
        parts.append(f"{human_count(seen):>5} tokens")
    if left is not None:
        parts.append(f"{left:>7} left")
    return _GAP.join(parts)


def step_field(step: int, total_steps: int | None) -> str:
    if total_steps is None:
        return f"step {step:>7,}"
    total = f"{total_steps:,}"
    return f"step {step:>{len(total)},}/{total}"


def human_count(n: float) -> str:
    """Format a count with three digits and a letter: 999, 1.23k, 45.6M, 300B, 1.50T."""
    for unit in ("", "k", "M", "B"):
        text = f"{n:.0f}" if unit == "" else f"{n:#.3g}".rstrip(".")
        if "e" not in text and float(text) < 1000:
            return text + unit
        n /= 1000
    return f"{n:,.2f}T"


def counted(n: int, noun: str) -> str:
    """A number and its noun, in the plural unless there is one: 1 step, 2,000 steps."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


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
