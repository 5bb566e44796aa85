"""A few lines of a long file are those that reading the whole file finds."""

import itertools
import json
import random

import pytest

from gpt.errors import ConfigError
from launch.runs.sampled_lines import records_between, sampled_records


@pytest.fixture
def long_file(tmp_path):
    """20,000 lines of unequal lengths with steps 0, 3, 6 and so on; some steps have two lines."""
    chance = random.Random(1)
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"step": 3 * i, "text": "y" * chance.randrange(50)}) + "\n")
            if i % 7 == 0:
                file.write(json.dumps({"step": 3 * i, "loss": 1.0}) + "\n")
    return path


def test_samples_are_evenly_spaced_and_end_with_the_last_lines(long_file):
    steps = [record["step"] for record in sampled_records(long_file, 500)]
    assert steps[0] == 0
    assert sorted(set(steps))[-2:] == [59_994, 59_997]
    assert steps == sorted(steps)
    spread = [step for step in steps if step < 50_000]
    assert 350 < len(spread) < 500
    assert max(b - a for a, b in itertools.pairwise(spread)) < 300


def test_a_short_file_is_read_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot JSON\n[2]\n{"step": 3}\n{"step": 4')
    assert list(sampled_records(path, 10)) == [{"step": 1}, {"step": 3}]
    path.write_text("")
    assert list(sampled_records(path, 10)) == []


def test_lines_of_a_range_of_steps_are_those_of_the_whole_file(long_file):
    chance, everything = random.Random(2), [json.loads(line) for line in long_file.read_text().splitlines()]
    ranges = [(0, 0), (-5, 2), (59_997, 10**9), (70_000, 80_000)]
    ranges += [(first := chance.randrange(60_000), first + chance.randrange(900)) for _ in range(40)]
    for first, last in ranges:
        wanted = [record for record in everything if first <= record["step"] <= last]
        assert records_between(long_file, first, last, most_bytes=1 << 30) == wanted, (first, last)
    assert records_between(long_file, 0, 60_000, most_bytes=1000) is None


def test_lines_without_a_step_do_not_stop_the_search(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("damaged\n" * 50 + '{"step": 5}\n' + "damaged\n" * 50 + '{"step": 6}\n' + "damaged\n" * 50)
    assert records_between(path, 6, 6, most_bytes=1 << 20) == [{"step": 6}]
    assert records_between(path, 5, 5, most_bytes=1 << 20) == [{"step": 5}]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder"):
        list(sampled_records(tmp_path, 10))
