"""The console of a run: plain lines in a pipe, and a live line on a terminal."""

import re
from pathlib import Path
from typing import Any

import pytest

from gpt.telemetry.console import TimeLeft, fit, human_count, human_duration, step_fields

REPOSITORY = Path(__file__).parents[3]

CONSOLE_RUN = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
config = MetricsConfig(wandb="disabled")
arguments = {"run_config": {}, "resume_step": None, "total_steps": 1200, "total_tokens": 600_000_000}
with MetricsWriter(config, Path(sys.argv[1]), **arguments) as writer:
    writer.message("model: 12 parameters")
    for step in (1, 2, 1200):
        values = {"loss": 12.5 / step, "gradient_norm": 3.14159 / step, "learning_rate": 2.5e-4, "mfu": 0.4123}
        writer.log(step, values | {"tokens_per_s": 1234.5 * step, "tokens_seen": step * 500_000, "step_s": 1.0})
        if step == 2:
            writer.message("saved a checkpoint")
    writer.log(1200, {"validation/dev/loss": 3.25})
"""


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`, which may have \\r, \\n and erase-to-end."""
    lines, column = [""], 0
    for token in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + token + lines[-1][column + len(token) :]
            column += len(token)
    return lines


def test_a_pipe_gets_one_plain_aligned_line_per_step(tmp_path: Path, python: Any) -> None:
    out = python(CONSOLE_RUN, tmp_path)
    assert "\r" not in out
    assert "\x1b" not in out
    first, *lines = out.splitlines()
    assert first == "model: 12 parameters"
    assert lines[2] == "saved a checkpoint"
    assert lines[4:] == ["step 1,200/1,200  validation/dev/loss 3.25"]
    steps = [lines[0], lines[1], lines[3]]
    assert lines[0] == (
        "step     1/1,200  loss  12.5000  gradient norm     3.14  learning rate 2.50e-04  1.23k tokens/s  "
        "MFU  41.2%   500k tokens        - left"
    )
    assert lines[3].startswith("step 1,200/1,200  loss   0.0104  gradient norm  0.00262  ")
    assert lines[3].endswith("1.48M tokens/s  MFU  41.2%   600M tokens       0s left")
    for word in ("loss", "gradient", "learning", "tokens/s", "MFU", "tokens  ", "left"):
        assert len({line.index(word) for line in steps}) == 1


def test_a_terminal_gets_a_live_line_with_messages_above(tmp_path: Path, on_terminal: Any) -> None:
    text = on_terminal(CONSOLE_RUN, tmp_path)
    shown = screen(text.replace("\r\n", "\n\r"))  # the terminal driver adds the carriage returns
    assert [line.split("  ")[0] for line in shown] == [
        "model: 12 parameters",
        "saved a checkpoint",
        "step 1,200/1,200",
        "step 1,200/1,200",
        "",
    ]
    assert shown[2] == "step 1,200/1,200  validation/dev/loss 3.25"
    for field in ("loss   0.0104", "gradient norm", "learning rate", "tokens/s", "MFU", "600M tokens", "0s left"):
        assert field in shown[3]
    assert "step     2/1,200" in text  # it was shown, and overwritten
    assert "step     2/1,200" not in "".join(shown)


def test_eighty_columns_show_every_value_and_fewer_show_the_loss(tmp_path: Path, on_terminal: Any) -> None:
    narrow = screen(on_terminal(CONSOLE_RUN, tmp_path, columns=80).replace("\r\n", "\n\r"))
    assert narrow[3] == "1200/1200 loss 0.0104 grad 0.0026 lr 2.5e-4 1.48M/s MFU 41% 600M tok 0s left"
    values = {"loss": 1.5, "gradient_norm": 0.5, "learning_rate": 1e-4, "tokens_per_s": 1e4, "mfu": 0.5}
    fields = step_fields(7, values, total_steps=100)
    assert fit(fields, width=46) == "7/100 loss 1.5000 grad 0.5 lr 1.0e-4 10.0k/s"
    assert fit(fields, width=30) == "7/100 loss 1.5000 10.0k/s"
    assert fit(fields, width=20) == "7/100 loss 1.5000"
    assert fit(fields, width=5) == "7/100"
    assert fit(fields, width=0) == ""


def test_time_left_follows_the_recent_speed() -> None:
    left = TimeLeft(1000)
    assert left.update(0, now=0.0) is None
    assert left.update(10, now=5.0) == pytest.approx(495.0)
    for i in range(2, 60):  # a constant speed gives an exact answer
        assert left.update(10 * i, now=5.0 * i) == pytest.approx((1000 - 10 * i) / 2)
    slow = left.update(600, now=5.0 * 59 + 50)  # one slow step changes the estimate, but not tenfold
    assert slow is not None
    assert 200 < slow < 400
    assert left.update(1000, now=400.0) == 0.0
    assert left.update(1010, now=401.0) == 0.0
    assert TimeLeft(None).update(5, now=1.0) is None


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (999.6, "1.00k"), (1000, "1.00k"), (1234, "1.23k"), (12_345, "12.3k"),
        (123_456, "123k"), (999_499, "999k"), (999_999, "1.00M"), (1_230_000, "1.23M"), (300e9, "300B"),
        (999.9e9, "1.00T"), (1.5e12, "1.50T"), (2.5e15, "2,500.00T"),
    ],
)  # fmt: skip
def test_human_count(n: float, text: str) -> None:
    assert human_count(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (7.4, "7s"),
        (59.6, "1m 00s"),
        (133, "2m 13s"),
        (3600, "1h 00m"),
        (18_240, "5h 04m"),
        (300_000, "3d 11h"),
    ],
)
def test_human_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
