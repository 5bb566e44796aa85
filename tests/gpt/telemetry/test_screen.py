"""The layout of a run's screen: columns, bar, sampled texts, and numbers for people."""

import math

import pytest

from gpt.telemetry.screen import (
    bar,
    bar_text,
    cells_of,
    columns_for,
    header,
    human_count,
    human_duration,
    row,
    row_every,
    sample_lines,
    step_line,
    wrapped,
)

VALUES = {"loss": 1.5, "gradient_norm": 0.5, "learning_rate": 1e-4, "tokens_per_s": 1e4, "mfu": 0.5, "tokens_seen": 7e9}


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (200, "step tokens loss val loss grad norm lr tokens/s MFU left"),
        (79, "step tokens loss val loss grad norm lr tokens/s MFU"),
        (72, "step tokens loss val loss grad norm tokens/s MFU"),
        (60, "step tokens loss val loss tokens/s MFU"),
        (40, "step tokens loss val loss"),
        (20, "step loss"),
        (0, "step loss"),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(width, titles):
    keys = {"step", "validation", "time_left", *VALUES}
    columns = columns_for(keys, width=width, total_steps=1_234_567)
    assert " ".join(header(columns).split()) == titles
    line = row(columns, cells_of(1_000_000, VALUES, left_s=60))
    assert line.startswith("1,000,000")
    assert len(line) <= len(header(columns)) <= max(width, 18)


def test_every_cell_ends_below_its_title():
    columns = columns_for({"step", "validation", *VALUES}, width=200, total_steps=300)
    titles, line = header(columns), row(columns, cells_of(7, VALUES, left_s=None))
    for title, cell in {
        "step": "7",
        "tokens": "7.00B",
        "grad norm": "0.5",
        "tokens/s": "10.0k",
        "MFU": "50.0%",
    }.items():
        assert titles.index(title) + len(title) == line.index(cell) + len(cell)


@pytest.mark.parametrize(
    ("total", "every"), [(1, 1), (12, 1), (30, 1), (31, 2), (60, 2), (61, 5), (300, 10), (301, 20), (1_000_000, 50_000)]
)
def test_rows_come_after_round_numbers_of_steps_and_are_thirty_at_most(total, every):
    assert row_every(total) == every
    assert total / every <= 30


def test_the_bar_has_the_width_of_the_terminal_at_most():
    assert bar(0.5, "7/14", width=24) == "━━━━━━───────  50%  7/14"
    assert bar(1.5, "7/14", width=24, letters="#-") == "############# 100%  7/14"
    assert bar(0.0, "7/14", width=19) == "────────   0%  7/14"
    assert bar(0.25, "7/14", width=12) == "25%  7/14"
    assert bar(0.25, "7/14", width=3) == "25%"
    assert bar(None, "7", width=30) == "7"
    assert len(bar(0.3, "7/14", width=500)) == 40 + len("  30%  7/14")


def test_a_sample_keeps_every_character_and_knows_where_its_prompt_ends():
    assert sample_lines("a\nb", "a\nbc", width=None) == [("a", ""), ("b", "c")]
    assert sample_lines("", "\ttext\r\n", width=None) == [("", "    text"), ("", "")]
    text = "One two three\n\nfour \x1b[31mfive six \u202e"
    for width in (5, 8, 80):
        lines = sample_lines("One two", text, width=width)
        assert "".join(of_prompt for of_prompt, _ in lines) == "One two"
        assert "".join(map("".join, lines)) == "One two threefour \\x1b[31mfive six \\u202e"
        assert all(len(of_prompt + written) <= width for of_prompt, written in lines)


def test_messages_break_between_words_only():
    assert wrapped("a path/with-a/long name", width=6) == ["a", "path/with-a/long", "name"]
    assert wrapped("", width=6) == [""]


def test_values_that_are_no_numbers_have_a_cell():
    assert cells_of(1, {"loss": math.nan, "mfu": 1.29}, left_s=None) == {"step": "1", "loss": "nan", "mfu": "-"}


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


def test_the_line_of_a_policy_shows_reward_and_kl():
    line = step_line(3, {**VALUES, "ppo/reward": -1.5, "ppo/kl": 0.02}, total_steps=6, left=None)
    assert " ".join(line.split()).startswith("step 3/6 loss 1.5000 reward -1.5 KL 0.02 gradient norm 0.5")


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_table_and_the_bar_of_a_policy_show_reward_and_kl(kind):
    values = {**VALUES, f"{kind}/reward": -1.51234, f"{kind}/kl": 0.0212345}
    cells = cells_of(3, values, left_s=None)
    assert (cells["reward"], cells["kl"]) == ("-1.51", "0.0212")
    columns = columns_for({"step", *cells}, width=79, total_steps=6)
    assert " ".join(header(columns).split()) == "step tokens loss reward KL grad norm lr tokens/s MFU"
    assert bar_text(3, values, total_steps=6, left_s=None) == "3/6  reward -1.51  KL 0.0212  10.0k tokens/s"
