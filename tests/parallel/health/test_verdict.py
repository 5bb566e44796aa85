"""Which rank is blamed for a hang, by reports as monitors write them. tests/launch has the processes behind them."""

import dataclasses

import pytest
from hang_reports import collective, report, waiting

from parallel.health.process_evidence import Link
from parallel.health.reports import HangReport
from parallel.health.verdict import decide, verdict_lines


def test_a_rank_that_waits_for_nobody_is_blamed_even_if_it_saves_in_the_background():
    saving = dataclasses.replace(collective("all_gather", 7, group="9", done=False), about="checkpoints")
    for pending in (None, saving):
        busy = report(2, pending=pending, frames=("/x/data.py:5 in read",))
        verdict = decide([waiting(0), waiting(1), busy, waiting(3)], world_size=4)
        assert (verdict.ranks, verdict.kind) == ((2,), "busy")
    in_a_receive = report(2, frames=("/venv/torch/distributed/distributed_c10d.py:7 in recv",))
    assert decide([waiting(0), in_a_receive], world_size=2).kind != "busy"


@pytest.mark.parametrize(
    ("odd", "ranks", "kind"),
    [
        (report(1, status="died", died_of="SIGKILL"), (1,), "died"),
        (report(1, status="failed", note="ValueError: no"), (1,), "failed"),
        (waiting(1, state="T"), (1,), "stopped"),
        (None, (1,), "silent"),
        (waiting(1, departures=("x came where y had come 9 times before",)), (1,), "skipped"),
        (waiting(1, kind="all_gather"), (1,), "skipped"),
        (waiting(1, number=38), (1,), "behind"),
        (waiting(1), (), "unclear"),
    ],
)
def test_the_odd_one_out_is_blamed(odd, ranks, kind):
    reports = [waiting(0), *([odd] if odd is not None else []), waiting(2), waiting(3)]
    verdict = decide(reports, world_size=4)
    assert (verdict.ranks, verdict.kind) == (ranks, kind)
    lines = verdict_lines(verdict, reports, world_size=4, folder="/run/hangs/now")
    assert ("rank 1" if ranks else "no rank to name") in lines[0]
    assert "in step 9" in lines[0]


def test_of_two_ranks_the_one_that_left_out_a_collective_is_blamed_although_the_other_aborts():
    culprit = report(0, status="lost its peers", departures=("all_reduce came where all_gather had come",))
    victim = report(1, status="died", died_of="SIGABRT")
    assert decide([culprit, victim], world_size=2).ranks == (0,)
    assert decide([culprit, dataclasses.replace(victim, died_of="SIGKILL")], world_size=2).ranks == (1,)
    assert decide([dataclasses.replace(culprit, departures=()), victim], world_size=2).ranks == (1,)


def test_dead_connections_point_to_the_machine_that_is_cut_off():
    def cut(rank: int, *others: int) -> HangReport:
        links = tuple(Link(f"10.0.0.{rank}:5", f"10.0.0.{other}:6", 100, 4) for other in others)
        return waiting(rank, dead_links=links, addresses=(f"10.0.0.{rank}",))

    verdict = decide([cut(0, 2), cut(1, 2), cut(2, 0, 1), cut(3)], world_size=4)
    assert (verdict.ranks, verdict.kind) == ((2,), "link")
