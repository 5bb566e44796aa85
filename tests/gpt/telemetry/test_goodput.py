"""Adding up the rows of a ledger: repeated steps, time between processes, and rows that are damaged."""

import json

from gpt.telemetry.goodput import REPEATED, account, read_account, read_rows, summary_lines


def row(process, step, training_s, *, from_step=0, take=0, elapsed_s, time=0.0, monotonic_s=0.0, boot="", **seconds):
    return {
        "process": process,
        "host": "h",
        "boot": boot,
        "restart_count": 0,
        "world_size": 1,
        "take": take,
        "from_step": from_step,
        "step": step,
        "tokens": step,
        "time": time,
        "monotonic_s": monotonic_s,
        "elapsed_s": elapsed_s,
        "seconds": {"training": training_s, **seconds},
    }


def test_a_rewind_and_a_restart_from_an_earlier_step():
    """To 100, back to 80, on to 120; a new process from 60 to 200: all steps of the first after 60 are repeated."""
    first = [
        row("a", 50, 50.0, elapsed_s=60.0, time=1060.0),
        row("a", 100, 100.0, elapsed_s=120.0, time=1120.0),
        row("a", 80, 100.0, from_step=80, take=1, elapsed_s=130.0, rewinding=10.0, time=1130.0),
    ]
    found = account([*first, row("a", 120, 140.0, from_step=80, take=1, elapsed_s=170.0, rewinding=10.0, time=1170.0)])
    assert (found.seconds[REPEATED], found.repeated_steps, found.seconds["training"]) == (20.0, 20, 120.0)
    assert found.wall_s == 170.0
    second = [
        row("b", 0, 0.0, from_step=None, elapsed_s=3.0, time=1183.0, **{"start_up/joining": 3.0}),
        row("b", 60, 0.0, from_step=60, elapsed_s=5.0, time=1185.0),
        row("b", 200, 140.0, from_step=60, elapsed_s=150.0, time=1330.0),
    ]
    found = account([*first, row("a", 120, 140.0, from_step=80, take=1, elapsed_s=170.0, time=1170.0), *second])
    assert (found.seconds[REPEATED], found.repeated_steps, found.seconds["training"]) == (80.0, 80, 200.0)
    assert (found.seconds["down"], found.wall_s) == (10.0, 330.0)
    assert account([*first, second[0]]).seconds[REPEATED] == 20.0, "a start-up that failed repeats nothing"


def test_rollouts_and_scores_are_parts_of_a_step():
    """Of five steps of 30 s each, a second process repeats the last two. It has the rollouts of the first of them."""
    start_up = {"start_up/joining": 10.0}
    first = [
        row("a", 0, 0.0, elapsed_s=10.0, time=10.0, **start_up),
        row("a", 3, 30.0, elapsed_s=100.0, time=100.0, rollouts=45.0, scoring=15.0, **start_up),
        row("a", 5, 50.0, elapsed_s=160.0, time=160.0, rollouts=75.0, scoring=25.0, **start_up),
    ]
    assert account(first).goodput == 150 / 160
    second = [
        row("b", 3, 0.0, from_step=3, elapsed_s=0.0, time=160.0),
        row("b", 4, 10.0, from_step=3, elapsed_s=15.0, time=175.0, scoring=5.0),
        row("b", 5, 20.0, from_step=3, elapsed_s=45.0, time=205.0, rollouts=15.0, scoring=10.0),
    ]
    found = account([*first, *second])
    assert (found.seconds[REPEATED], found.repeated_steps, found.goodput) == (20.0 + 10.0 + 15.0, 2, 150 / 205)
    assert [found.seconds[phase] for phase in ("training", "rollouts", "scoring")] == [50.0, 75.0, 25.0]


def test_a_restart_of_a_run_that_only_samples_loses_nothing():
    """It saves no checkpoint, so it starts at step 0 again, and finds the files of the first three steps."""
    found = account(
        [
            row("a", 3, 0.0, elapsed_s=50.0, time=50.0, rollouts=45.0),
            row("b", 4, 0.0, elapsed_s=20.0, time=70.0, rollouts=15.0),
        ]
    )
    assert (found.seconds[REPEATED], found.repeated_steps, found.goodput) == (0.0, 0, 60 / 70)


def test_setting_the_clock_back_subtracts_no_time():
    a = row("a", 10, 10.0, elapsed_s=10.0, time=5000.0, monotonic_s=100.0, boot="one")
    b = row("b", 20, 10.0, from_step=10, elapsed_s=10.0, time=1400.0, monotonic_s=117.0, boot="one")
    assert account([a, b]).seconds["down"] == 7.0, "on one machine the monotonic clock decides"
    assert account([a, {**b, "boot": "another"}]).seconds["down"] == 0.0


def test_damaged_rows_are_skipped(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert read_account(path) is None
    good = json.dumps(row("a", 1, 1.0, elapsed_s=2.0))
    bad = [
        "[]",
        "7",
        '{"process": "a"}',
        "\x00\xff",
        good.replace("2.0", "NaN"),
        good.replace("1.0", '"x"'),
        "[" * 9999,
    ]
    path.write_text("\n".join([*bad, good, good[:40]]), encoding="latin-1")
    assert len(list(read_rows(path))) == 1
    assert read_account(path).wall_s == 2.0


def test_the_summary_names_the_parts_by_size_and_the_repeated_steps():
    rows = [
        row("a", 0, 0.0, elapsed_s=3.0),
        row("a", 10, 6.0, elapsed_s=10.0, saving=1.0),
        row("b", 20, 12.0, from_step=8, elapsed_s=15.0, time=20.0),
    ]
    first, parts, repeated = summary_lines(account(rows))
    assert first == "time: 30.0 s in 2 starts, goodput 56.0%"
    assert parts.startswith("time: training that counted 56.0%, ")
    assert repeated == "time: 2 steps were lost and repeated"
