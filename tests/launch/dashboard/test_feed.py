"""A page's data of a run: at once from a few lines, then whole, then as the run writes on."""

import json
import threading
import time

import pytest

from gpt.errors import ConfigError
from launch.dashboard.feed import RunFeed, read_clock, run_directories, tokens_of
from launch.runs.history import read_history


@pytest.fixture
def long_run(tmp_path):
    """40,000 steps with a loss of 9 at step 20,001 only."""
    run = tmp_path / "long"
    run.mkdir()
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 40_001):
            loss = 9.0 if step == 20_001 else 3.0
            file.write(json.dumps({"step": step, "loss": loss, "tokens_seen": 64 * step}) + "\n")
    return run


def until(condition):
    ends_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_the_first_look_reads_little_and_the_whole_file_follows(long_run):
    feed = RunFeed(long_run)
    assert feed.version == 0
    assert feed.history.last_step == 40_000
    assert 2000 < len(feed.history.metrics["loss"].steps) < 8000, "a sample, with the last lines"
    feed.read_once()
    assert feed.version == 1
    whole = feed.series("loss", most=500)
    assert len(whole.steps) <= 500
    assert whole.high.max() == 9.0, "one step of 40,000"
    reference = read_history(long_run).metrics["loss"]
    assert feed.history.metrics["loss"].values.tolist() == reference.values.tolist()


def test_damaged_lines_and_files_are_named(long_run):
    with (long_run / "metrics.jsonl").open("a") as file:
        file.write('not JSON\n[1]\n{"step": 40001, "loss": 3.5}\n')
    (long_run / "ledger.jsonl").mkdir()
    feed = RunFeed(long_run)
    feed.read_once()
    assert feed.history.last_step == 40_001
    assert feed.history.problems == ["metrics.jsonl: 2 damaged lines, skipped", "ledger.jsonl: cannot be read"]


def test_a_part_of_a_long_series_has_every_step(long_run):
    feed = RunFeed(long_run)
    feed.read_once()
    part = feed.series("loss", most=500, first=19_900, last=20_100)
    assert part.steps.tolist() == list(range(19_900, 20_101))
    assert part.values[101] == 9.0
    assert len(feed.series("loss", most=500, first=1, last=39_000).steps) <= 500
    assert feed.series("no such metric", most=500) is None
    assert feed.series("loss", most=500, first=50_000, last=60_000) is None


def test_the_run_is_followed_while_it_writes(written_runs, tmp_path):
    run = tmp_path / "run"
    written_runs.write_run(run, steps=20)
    feed, stop = RunFeed(run), threading.Event()
    thread = threading.Thread(target=feed.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        until(lambda: feed.version == 1)
        assert feed.history.account.step == 20
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 21, "loss": 1.5}\n{"step": 22, "lo')
        until(lambda: feed.history.last_step == 21)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('ss": 1.25}\n')
        until(lambda: feed.history.metrics["loss"].values[-1] == 1.25)
        assert feed.history.problems == []
        replacement = tmp_path / "shorter"  # a resume moves the steps after its checkpoint to another file
        replacement.write_text('{"step": 7, "loss": 2.5}\n')
        replacement.rename(run / "metrics.jsonl")
        until(lambda: feed.history.metrics["loss"].steps.tolist() == [7])
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not thread.is_alive()


def test_the_clock_of_a_run_that_was_restarted_does_not_go_back(written_runs, tmp_path):
    run = tmp_path / "run"
    written_runs.write_run(run, steps=60, lost=(40, 50))
    clock = read_clock(run / "ledger.jsonl")
    assert clock["step"] == sorted(set(clock["step"]))
    assert clock["seconds"] == sorted(clock["seconds"])
    assert clock["step"][-1] == 60
    odd = tmp_path / "odd.jsonl"
    odd.write_text(
        '{"step": 1, "time": 1e9, "elapsed_s": 1%s}\n{"step": 2, "time": 1e999, "elapsed_s": 1}\n' % ("0" * 400)
    )
    assert read_clock(odd) == {"step": [], "seconds": []}
    assert read_clock(run / "missing.jsonl") == {"step": [], "seconds": []}
    tokens = tokens_of(read_history(run))
    assert tokens["tokens"] == [100 * step for step in tokens["step"]]


def test_a_folder_of_runs_stands_for_its_runs(written_runs, tmp_path):
    for name in ("b", "a"):
        written_runs.write_run(tmp_path / "runs" / name, steps=3)
    (tmp_path / "runs" / "notes").mkdir()
    found = run_directories([tmp_path / "runs", tmp_path / "runs" / "b"])
    assert [path.name for path in found] == ["a", "b", "b"]
    with pytest.raises(ConfigError, match="is not a run directory"):
        run_directories([tmp_path / "runs" / "notes"])
    with pytest.raises(ConfigError, match="no such directory"):
        run_directories([tmp_path / "nowhere"])
