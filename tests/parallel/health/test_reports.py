"""Where monitors meet: one folder for all reports, one leader, each report read once."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hang_reports import settings, waiting

from parallel.health.process_evidence import Link
from parallel.health.reports import (
    Member,
    alarm_file,
    by_machine,
    gather_reports,
    hang_folder,
    host_changes,
    parse_report,
    take_lead,
)


@pytest.mark.parametrize("links", [True, False])
def test_all_ranks_report_into_one_folder_with_or_without_hard_links(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    folders = {hang_folder(settings(tmp_path / "hangs", rank)) for rank in (1, 0)}
    assert len(folders) == 1
    assert alarm_file(settings(tmp_path / "hangs", 0)).read_text() == folders.pop().name
    assert len(list((tmp_path / "hangs").iterdir())) == 2


def test_a_deleted_run_directory_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        hang_folder(settings(tmp_path / "gone" / "hangs", 0))
    assert not (tmp_path / "gone").exists()


def leave_report(folder: Path, rank: int, **more) -> Path:
    path = folder / f"rank-{rank:05}.json"
    path.write_text(json.dumps(dataclasses.asdict(waiting(rank, **more))))
    return path


def test_rank_0_decides_or_else_the_first_that_asks(tmp_path):
    with_rank_0, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_rank_0, without):
        folder.mkdir()
    leave_report(with_rank_0, 0, status="died")  # its monitor decides although the rank is dead
    assert [rank for rank in (2, 0, 3) if take_lead(settings(tmp_path, rank), with_rank_0)] == [0]
    assert [rank for rank in (2, 3, 0) if take_lead(settings(tmp_path, rank), without)] == [2]


def test_a_monitor_knows_the_processes_of_its_machine_and_the_hosts_of_all():
    members = [Member(f"node{rank // 2}", f"boot {rank // 2}", 100 + rank, "1") for rank in range(5)]
    assert by_machine(members)[3] == {2: members[2], 3: members[3]}
    ours = dataclasses.replace(settings(Path("hangs"), 3), hosts=host_changes([member.host for member in members]))
    assert ours.hosts == ((0, "node0"), (2, "node1"), (4, "node2"))
    assert [ours.host_of(rank) for rank in range(5)] == [member.host for member in members]


def test_each_report_is_read_once_when_it_arrives(tmp_path):
    reports, first = {}, leave_report(tmp_path, 1)
    gather_reports(settings(tmp_path, 0), tmp_path, reports)
    first.write_text("read already")
    leave_report(tmp_path, 0)
    gather_reports(settings(tmp_path, 0), tmp_path, reports)
    assert [reports[name].rank for name in sorted(reports)] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_report_survives_json():
    links = (Link("10.0.0.1:5", "10.0.0.2:6", 100, 4),)
    sent = waiting(1, dead_links=links, addresses=("10.0.0.1",), frames=("/a/b.py:1 in f",), departures=("a", "b"))
    assert parse_report(json.loads(json.dumps(dataclasses.asdict(sent)))) == sent
