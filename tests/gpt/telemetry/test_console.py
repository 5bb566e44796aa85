"""The console of a run: plain lines in a pipe; on a terminal a table that stays, with a bar below it."""

import re
from pathlib import Path
from typing import Any

import pytest

from gpt.telemetry.console import TimeLeft

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
            writer.log(2, {"straggler/slowest_rank": 3, "straggler/ratio": 1.3})
            writer.log(2, {"epochs/web": 0.1, "goodput": 0.9, "time/training": 3.0})
    writer.log(1200, {"validation/dev/loss": 3.25, "validation/dev/perplexity": 25.8})
"""

LONG_RUN = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
arguments = {"run_config": {}, "resume_step": None, "total_steps": 300, "total_tokens": 300 * 2048}
with MetricsWriter(MetricsConfig(wandb="disabled"), Path(sys.argv[1]), **arguments) as writer:
    for step in range(1, int(sys.argv[2]) + 1):
        mfu = 1.29 if step % 3 else 0.5
        writer.log(step, {"loss": 9 - step / 100, "tokens_per_s": 2711.0, "tokens_seen": step * 2048, "mfu": mfu})
        writer.log(step, {"straggler/slowest_rank": 3, "straggler/ratio": 1.3})
    writer.event("straggler", step=step, text="rank 3 on node7: 40% slower than its peer")
    writer.log(step, {"validation/web/loss": 5.5, "validation/web/accuracy": 0.25, "validation/books/loss": 6.5})
    writer.log(step, {"few_shot/sums/0": 0.25})
    text = "\\ta \\x1b[2J\\x1b]0;title\\x07time " + "there was " * 8 + "a king."
    writer.samples(step, ["Once upon\\n"], [f"Once upon\\n{text}"])
"""
POLICY_RUN = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
arguments = {"run_config": {}, "resume_step": None, "total_steps": 3, "total_tokens": 300}
with MetricsWriter(MetricsConfig(wandb="disabled"), Path(sys.argv[1]), **arguments) as writer:
    for step in (1, 2, 3):
        loss = {"loss": 0.25} if step > 1 else {}  # only the critic learns in the first iteration
        values = {"ppo/reward": step / 4, "ppo/kl": 0.5 * step, "ppo/length": 12.0, "tokens_seen": 100 * step}
        writer.log(step, loss | values)
"""
EVENT = "rank 3 on node7: 40% slower than its peer"
COLORS = re.compile(r"\x1b\[\d*m")


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`, which may have \\r, \\n, colours and erase-to-end."""
    lines, column = [""], 0
    # the terminal driver puts a carriage return before each newline
    for token in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", COLORS.sub("", text)):
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
    assert lines[4:] == ["step 1,200/1,200  validation/dev/loss 3.25  validation/dev/perplexity 25.8"]
    steps = [lines[0], lines[1], lines[3]]
    assert lines[0] == (
        "step     1/1,200  loss  12.5000  gradient norm     3.14  learning rate 2.50e-04  1.23k tokens/s  "
        "MFU  41.2%   500k tokens        - left"
    )
    assert lines[3].startswith("step 1,200/1,200  loss   0.0104  gradient norm  0.00262  ")
    assert lines[3].endswith("1.48M tokens/s  MFU  41.2%   600M tokens       0s left")
    for word in ("loss", "gradient", "learning", "tokens/s", "MFU", "tokens  ", "left"):
        assert len({line.index(word) for line in steps}) == 1


def test_a_terminal_gets_a_table_that_stays_and_a_bar_below_it(tmp_path: Path, on_terminal: Any) -> None:
    text = on_terminal(CONSOLE_RUN, tmp_path, columns=81)
    assert screen(text) == [
        "model: 12 parameters",
        " step  tokens     loss  val loss  grad norm       lr  tokens/s    MFU     left",
        "    1    500k  12.5000                 3.14  2.5e-04     1.23k  41.2%",
        "saved a checkpoint",
        "1,200    600M   0.0104              0.00262  2.5e-04     1.48M  41.2%       0s",
        "1,200                     3.2500  dev",
        "",
    ], "health values are in metrics.jsonl only, and step 2 has no row"
    assert "straggler/ratio" in (tmp_path / "metrics.jsonl").read_text()
    bars = [line for line in re.split(r"[\r\n]", text) if re.search("[━─].* tokens/s", line)]
    assert re.search(r"^─{8,}   0%  2/1,200  loss 6.2500  2.47k tokens/s  .* left", bars[1]), bars
    assert all(len(COLORS.sub("", line).replace("\x1b[K", "")) <= 80 for line in bars)


def test_each_iteration_of_a_policy_has_a_row(tmp_path: Path, on_terminal: Any) -> None:
    titles, *rows, end = screen(on_terminal(POLICY_RUN, tmp_path, columns=81))
    assert titles == "step  tokens     loss   reward      KL     left"
    ends_with_kl = titles.index("KL") + 2
    assert [line[:ends_with_kl].split() for line in rows] == [
        ["1", "100", "0.25", "0.5"],
        ["2", "200", "0.2500", "0.5", "1"],
        ["3", "300", "0.2500", "0.75", "1.5"],
    ]
    assert end == ""


def test_three_hundred_steps_leave_thirty_rows_and_the_last_one(tmp_path: Path, on_terminal: Any) -> None:
    shown = screen(on_terminal(LONG_RUN, tmp_path, 297, columns=100, environment={"TERM": "xterm"}))
    rows = [line.split() for line in shown if re.match(r" *\d+ .* 2.71k", line)]
    assert [int(row[0]) for row in rows] == [1, *range(10, 300, 10), 297]
    assert shown[0].startswith("an MFU above 100% is shown as '-': the peak")
    assert next(line for line in shown if " tokens " in line).split() == [
        "step",
        "tokens",
        "loss",
        "val",
        "loss",
        "tokens/s",
        "MFU",
        "left",
    ]
    assert sum("MFU" in line for line in shown) == 2, "explained once"
    assert {row[4] for row in rows} == {"-", "50.0%"}
    assert "1.29" in (tmp_path / "metrics.jsonl").read_text()
    at = shown.index(EVENT)
    assert shown[at + 1 :] == [
        " 297                     5.5000  web  accuracy 0.25",
        " 297                     6.5000  books",
        "step 297/300  few_shot/sums/0 0.25",
        r"sample at step 297, after 'Once upon\n':",
        "  | Once upon",
        r"  |     a \x1b[2J\x1b]0;title\x07time there was there was there was there was there was there was",
        "  | there was there was a king.",
        " 297    608k   6.0300               2.71k  50.0%       0s",
        "",
    ], "the step that had no row gets one at the end"


def test_colours_mark_what_matters(tmp_path: Path, on_terminal: Any) -> None:
    text = on_terminal(LONG_RUN, tmp_path / "1", 20, columns=100, environment={"TERM": "xterm"})
    assert f"\x1b[33m{EVENT}\x1b[0m" in text
    assert re.search(r"\x1b\[36m  20 +5.5000  web  accuracy 0.25\x1b\[0m", text)
    assert "  | \x1b[1mOnce upon\x1b[0m\r\n" in text
    assert not set(re.findall(r"\x1b.", text)) - {"\x1b["}, "the text of the model steers no terminal"
    plain = on_terminal(LONG_RUN, tmp_path / "2", 20, columns=100, environment={"TERM": "xterm", "NO_COLOR": "1"})
    assert set(re.findall(r"\x1b..?", plain)) == {"\x1b[K"}
    dumb = on_terminal(LONG_RUN, tmp_path / "3", 20, columns=100, environment={"TERM": "dumb"})
    assert "\x1b" not in dumb
    assert dumb.count("2.71k tokens/s") == 20, "a line for each step, as in a pipe"


def test_a_terminal_without_our_letters_gets_a_plain_bar(tmp_path: Path, on_terminal: Any) -> None:
    environment = {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}
    text = on_terminal(LONG_RUN, tmp_path, 200, columns=80, environment=environment)
    assert re.search(r"#{8,}-{8,}  67%  200/300  loss 7.0000  2.71k tokens/s  0s left", text)


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


def test_a_line_breaks_between_words_on_a_terminal_only(python: Any, on_terminal: Any) -> None:
    program = (
        "from gpt.telemetry.console import for_terminal; print(for_terminal('It finds which of 4 texts continues'))"
    )
    assert python(program) == "It finds which of 4 texts continues\n"
    assert screen(on_terminal(program, columns=21)) == ["It finds which of 4", "texts continues", ""]
