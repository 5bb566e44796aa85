"""An interrupted selection continues after the last file that it has read."""

import json
import os

import numpy as np

from gpt.moderation.loop.selection import SelectionSettings, select
from launch.moderation.loop.selection import labelled_ids, pool_of

SETTINGS = SelectionSettings(20, ("A",))


def written(path, first, last):
    rng = np.random.default_rng(first)
    lines = [json.dumps({"id": f"t{i}", "scores": {"A": rng.random()}}) for i in range(first, last)]
    path.write_text("\n".join(lines))
    return path


def read(paths, state_file, settings=SETTINGS):
    return pool_of(paths, settings, labelled=frozenset(), group_by=None, state_file=state_file)[0]


def test_continues_after_the_last_file_and_reads_none_twice(tmp_path):
    first, second = written(tmp_path / "a.jsonl", 0, 200), written(tmp_path / "b.jsonl", 200, 500)
    state_file = tmp_path / "state.json"
    expected = select(read([first, second], tmp_path / "other.json"), SETTINGS)
    read([first], state_file)
    times = os.stat(first)
    first.write_bytes(b"x" * times.st_size)  # would be refused if it were read again
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    resumed = read([first, second], state_file)
    assert resumed.seen == 500
    assert select(resumed, SETTINGS) == expected


def test_a_file_that_is_no_longer_given_or_has_changed_starts_again(tmp_path):
    first, second = written(tmp_path / "a.jsonl", 0, 50), written(tmp_path / "b.jsonl", 50, 90)
    state_file = tmp_path / "state.json"
    read([first], state_file)
    assert read([second], state_file).seen == 40
    written(second, 50, 80)
    assert read([second, first], state_file).seen == 80


def test_labelled_texts_of_the_pool_are_counted_also_after_a_resume(tmp_path):
    first, second = written(tmp_path / "a.jsonl", 0, 50), written(tmp_path / "b.jsonl", 50, 90)
    more = {
        "labelled": frozenset({"t3", "t60", "t61", "elsewhere"}),
        "group_by": None,
        "state_file": tmp_path / "s.json",
    }
    assert [pool_of(paths, SETTINGS, **more)[1] for paths in ([first], [first, second])] == [1, 3]
    assert pool_of([first, second], SETTINGS, **more)[0].seen == 87


def test_other_arguments_start_again(tmp_path):
    path, state_file = written(tmp_path / "a.jsonl", 0, 50), tmp_path / "state.json"
    read([path], state_file)
    assert read([path], state_file).seen == 50
    assert read([path], state_file, SelectionSettings(20, ("A",), seed=1)).seen == 50


def test_ids_of_labelled_files_are_those_of_their_lines_or_texts(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "a", "skipped": true}\n{"text": "boats", "labels": {}}\n')
    found = labelled_ids([path])
    assert "a" in found
    assert len(found) == 2
