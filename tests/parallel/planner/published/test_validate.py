"""The time model against measurements that others published. Bounds: docs/results/training/planner.md."""

from pathlib import Path

import pytest

from gpt.errors import ConfigError
from parallel.planner import published
from parallel.planner.hardware.tables import read_hardware
from parallel.planner.published.rows import published_runs, read_rows
from parallel.planner.published.validate import calibrated_errors, compare, kendall_tau, summary

ROWS = Path(published.__file__).parent / "runs.csv"


@pytest.fixture(scope="module")
def comparisons():
    runs, left_out = published_runs(read_rows(ROWS), read_hardware())
    assert left_out == []
    return compare(runs)


def test_errors_on_published_runs_stay_within_the_stated_ones(comparisons):
    assert len(comparisons) == 47
    blind = summary([each.error for each in comparisons])
    assert blind.median <= 0.05
    assert blind.p90 <= 0.15
    calibrated = summary(calibrated_errors(comparisons))
    assert calibrated.median <= 0.05
    assert calibrated.p90 <= 0.15


def test_rows_that_gave_no_constant():
    """Five of six rows of llm_foundry.csv are unseen by `benchmarks/planner_constants.py`."""
    rows = read_rows(ROWS.with_name("llm_foundry.csv"))
    runs, left_out = published_runs([row for i, row in enumerate(rows) if i % 6], read_hardware())
    assert left_out == []
    found = compare(runs)
    errors = summary([each.error for each in found])
    assert errors.count == 177
    assert errors.median <= 0.05
    assert errors.p90 <= 0.13


def test_layouts_of_one_family_are_ordered_as_measured(comparisons):
    tau = kendall_tau(comparisons)
    assert tau is not None
    assert tau >= 0.8


def test_the_network_of_bloom_is_found_in_its_note(comparisons):
    bloom = next(each.run for each in comparisons if each.run.id == "bloom176B_full")
    assert bloom.cluster.network.gb_per_s == 6.25
    assert bloom.jobs[0].split == (5, *(6,) * 10, 5)  # embedding and head count as a block each


def test_a_missing_column_or_an_invalid_value_is_named(tmp_path):
    lines = ROWS.read_text().splitlines()
    path = tmp_path / "rows.csv"
    path.write_text("id,source,gpu\na,b,c\n")
    with pytest.raises(ConfigError, match=r"the columns n_gpus, layers, .*, value are missing"):
        read_rows(path)
    path.write_text(lines[0] + "\n")
    with pytest.raises(ConfigError, match="no rows"):
        read_rows(path)
    for old, new, words in (
        ("A100-80G", "X100-80G", "row sc21_1.7B: GPU 'X100-80G' is unknown"),
        (",137,", ",-1,", "value -1"),
    ):
        path.write_text(f"{lines[0]}\n{lines[1].replace(old, new)}\n")
        runs, (line,) = published_runs(read_rows(path), read_hardware())
        assert runs == []
        assert words in line
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(tmp_path / "none.csv")
