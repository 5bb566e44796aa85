"""The figures of a report."""

from typing import get_args

import pytest

from gpt.telemetry.event_log import EventKind
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from gpt.training.run import End
from launch.reports.facts import ENDS, KINDS, bytes_text, headline, meaning_of, seconds_text, time_text
from launch.runs.history import read_history


def test_every_kind_of_event_is_known_to_the_report():
    """mypy checks that only kinds of EventKind are written."""
    assert KINDS.keys() == set(get_args(EventKind))
    assert meaning_of("of a later version") == "note"
    assert meaning_of("copies_differ") == "fault", "as earlier versions wrote replica_mismatch"


def test_every_end_of_a_run_has_a_sentence():
    assert ENDS.keys() == set(get_args(End)) - {"total_tokens"}


def test_sizes_and_times_are_written_with_units():
    assert [bytes_text(n) for n in (12, 1536, 3 << 30, 5 << 40)] == ["12 B", "1.5 KiB", "3.0 GiB", "5.00 TiB"]
    assert seconds_text(2.5) == "2.50 s"


def test_an_mfu_above_100_percent_is_explained_and_not_shown(tmp_path):
    with MetricsWriter(MetricsConfig(wandb="disabled"), tmp_path, run_config={}, resume_step=None) as writer:
        writer.log(1, {"loss": 3.0, "mfu": 1.29})
    (found,) = [figure for figure in headline(read_history(tmp_path)) if figure[0] == "MFU"]
    assert found[1] == "-"
    assert found[2].endswith("is too low. Set run.peak_flops_per_s")


@pytest.mark.parametrize("damaged", [1e30, float("inf"), float("nan")])
def test_a_time_that_no_clock_can_show_is_written_as_a_number(damaged):
    assert time_text(damaged) == f"{damaged:g}"
