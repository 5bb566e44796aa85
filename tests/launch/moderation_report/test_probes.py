"""Results of probes are read, divided among versions, and refused if damaged."""

import json

import pytest

from gpt.errors import ConfigError
from launch.moderation_report.probes import probes_of, read_probes


def test_targets_sum_up_to_their_function(made, hostile):
    (suite,) = read_probes(made.probes("p.json")).functional
    assert suite.functions == ["one_h", hostile]
    assert suite.targets == ["", hostile, "cats"]
    assert (suite.cells["one_h", ""].cases, suite.cells["one_h", ""].right) == (20, 15)
    assert suite.cells["one_h", "cats"].share == 0.9
    (gap,) = read_probes(made.probes("p.json")).gaps
    assert [word for word, *_ in gap.words] == [hostile, "tall"], "the largest distance from 0 first"


def test_files_belong_to_the_version_that_they_name(made):
    paths = [made.probes("a.json", model="m-second"), made.probes("b.json")]
    first, second = probes_of(paths, ["m-first", "m-second"])
    assert ([one.model for one in first], [one.model for one in second]) == ([], ["m-second", ""])
    assert len(probes_of(paths[1:], ["x", "y"])[0]) == 1
    assert len(probes_of(paths[:1], ["", "y"])[0]) == 1, "scores without a summary name no model"
    with pytest.raises(ConfigError, match=r"a\.json probed m-second, which is none of the versions: x, y\."):
        probes_of(paths[:1], ["x", "y"])


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"functional": [{"category": "H", "results": [{"function": "f", "cases": -1, "right": 0}]}]},
        {"functional": [{"category": "H", "results": [{"function": 3, "cases": 1, "right": 0}]}]},
        {"counterfactuals": [{"category": "H"}]},
        {"functional": {}},
        {"perturbations": [{"category": "H"}]},
        {"reduction": {"H": {"reduced": "x"}}},
        {
            "slices": [
                {"field": "f", "value": "v", "texts": 1, "measures": [{"category": "H", "positives": 1, "auprc": {}}]}
            ]
        },
    ],
)
def test_damaged_results_are_refused(tmp_path, value):
    (tmp_path / "p.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"p\.json has"):
        read_probes(tmp_path / "p.json")


def test_what_labels_are_needed_for_is_read_too(made, hostile):
    probes = read_probes(made.probes("p.json"))
    assert probes.still_flagged["H", hostile].share == 0.75
    assert [(one.value, one.auprc) for one in probes.slices] == [(hostile, (("H", None, 0),))]
    assert [(one.category, one.before, one.after) for one in probes.reduced] == [(hostile, 70, 9.5)]
