"""Answers are appended, survive a cut line and a full disk, and two processes can add to one file."""

import errno
import json
import multiprocessing
import os

import pytest

from gpt.errors import ConfigError
from launch.labelling.answers import AnswerFile

ANSWER = {"id": "t1", "text": "Text.", "labeller": "ana", "labels": {"A": 1}}


def add(path, *records):
    file = AnswerFile(path)
    for record in records:
        with file.locked() as opened:
            file.append(opened, record)
    return file


def test_the_newest_answer_counts_and_an_undone_one_is_gone(tmp_path):
    file = add(
        tmp_path / "labels.jsonl",
        ANSWER,
        {**ANSWER, "id": "t2", "severity": {"A": 2}, "seconds": 3},
        {**ANSWER, "labels": {"A": 0, "B": None}},
        {**ANSWER, "id": "t3"},
        {**ANSWER, "id": "t3", "labels": {}, "undone": True},
        {**ANSWER, "id": "t4", "labels": {}, "skipped": True},
    )
    mine = file.by_labeller["ana"]
    assert list(mine) == ["t2", "t1", "t4"], "in the order of the newest answers"
    assert (mine["t1"].labels, mine["t2"].severity, mine["t2"].seconds) == ({"A": 0, "B": None}, {"A": 2}, 3.0)
    assert [one.is_skipped for one in mine.values()] == [False, False, True]


def test_a_line_that_a_crash_cut_short_costs_only_itself(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(ANSWER) + "\n" + json.dumps({**ANSWER, "id": "t2"})[:20])
    file = add(path, {**ANSWER, "id": "t3"})
    assert list(file.by_labeller["ana"]) == ["t1", "t3"]
    assert file.damaged == 1
    again = add(path)
    with again.locked():
        assert list(again.by_labeller["ana"]) == ["t1", "t3"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    file = add(path, ANSWER)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, file.locked() as opened:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.append(opened, {**ANSWER, "id": "t2"})
    assert path.read_bytes() == before
    with file.locked() as opened:
        file.append(opened, {**ANSWER, "id": "t2"})
    assert list(file.by_labeller["ana"]) == ["t1", "t2"]


def test_a_file_that_somebody_replaced_is_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    file = add(path, ANSWER)
    path.rename(tmp_path / "moved.jsonl")
    path.write_text("")
    with pytest.raises(ConfigError, match="was replaced"), file.locked():
        pass
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"), AnswerFile(link).locked():
        pass


def _add_many(path, labeller):
    add(path, *({**ANSWER, "id": f"t{i}", "labeller": labeller, "text": "word " * 2000} for i in range(40)))


def test_two_processes_add_to_one_file_and_every_line_is_whole(tmp_path):
    path = tmp_path / "labels.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(path, name)) for name in ("ana", "ben")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    file = add(path)
    with file.locked():
        assert {name: len(mine) for name, mine in file.by_labeller.items()} == {"ana": 40, "ben": 40}
    assert file.damaged == 0
