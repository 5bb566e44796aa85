"""The section [objective] of a classifier holds its taxonomy, and refuses what makes no sense with one line."""

import dataclasses
import json

import pytest

from gpt.errors import ConfigError
from gpt.moderation.config import ClassifierConfig

TAXONOMY = """
name = "fruit"
version = 2
[[category]]
id = "F"
title = "fruit"
definition = "any fruit"
[[category]]
id = "F2"
title = "rotten fruit"
definition = "fruit that is rotten"
parent = "F"
"""


def test_the_configuration_alone_holds_the_taxonomy(tmp_path):
    path = tmp_path / "fruit.toml"
    path.write_text(TAXONOMY)
    config = ClassifierConfig(taxonomy=str(path))
    assert config.read.label == "fruit 2"
    path.unlink()
    again = ClassifierConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert (again.read.ids, again.read.parents) == (("F", "F2"), (-1, 0))
    assert again.build(z_loss=0.0).taxonomy.digest == config.read.digest


def test_the_taxonomy_of_the_paper_is_the_default():
    assert len(ClassifierConfig().read.ids) == 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden": 0}, "objective.hidden = 0 is invalid: must be at least 1"),
        ({"pool": "attention", "queries": 0}, "objective.queries = 0 is invalid: must be at least 1. Use 8"),
        (
            {"pool": "mean", "queries": 8},
            "objective.queries = 8 is invalid with objective.pool = 'mean': only attention has queries. Leave it out, "
            "or set objective.pool = 'attention'",
        ),
        ({"critic_hidden": -1}, "objective.critic_hidden = -1 is invalid: must be at least 1"),
        ({"head_dropout": 1.0}, "objective.head_dropout = 1 is invalid: must be at least 0 and below 1. Use 0.1"),
        ({"focal_gamma": -1.0}, "objective.focal_gamma = -1 is invalid: must be 0 or above. Use 0"),
        ({"adversarial_weight": float("nan")}, "objective.adversarial_weight = nan is invalid: must be 0 or above"),
        ({"critic_clip": 0.0}, "objective.critic_clip = 0 is invalid: must be a number above 0. Use 0.01"),
        ({"class_weights": {"SH": 0.0}}, "objective.class_weights.SH = 0 is invalid: must be a number above 0. Use 1"),
        ({"class_weights": {"SHH": 2.0}}, "objective.class_weights.SHH is invalid: taxonomy '"),
        ({"taxonomy_content": "{"}, "objective.taxonomy_content is invalid: must be a JSON object. Leave it out"),
        ({"taxonomy_content": "[]"}, "objective.taxonomy_content is invalid: must be a JSON object. Leave it out"),
        ({"taxonomy": "moderation_opena"}, "objective.taxonomy = 'moderation_opena' is invalid"),
    ],
)
def test_what_makes_no_sense_is_refused_with_one_line(keys, message):
    with pytest.raises(ConfigError) as error:
        ClassifierConfig(**keys)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_attention_has_eight_queries_by_default():
    assert [ClassifierConfig(pool=pool).n_queries for pool in ("last", "mean", "attention")] == [0, 0, 8]
    assert ClassifierConfig(pool="attention", queries=3).n_queries == 3


def test_a_loss_over_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match=r"train\.z_loss = 0\.0001 is invalid with objective\.kind = 'classifier'"):
        ClassifierConfig().build(z_loss=1e-4)


def test_a_wrong_taxonomy_names_its_key():
    with pytest.raises(ConfigError, match=r"objective\.taxonomy = 'nothing' is invalid: nothing: no such taxonomy"):
        ClassifierConfig(taxonomy="nothing")
