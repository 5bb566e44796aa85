"""The choice of an engine, and engines that share a mesh."""

import dataclasses

import pytest
import torch
from layout_runs import settings_of

from gpt.training.objective import NextToken
from parallel.engines.choose import ENGINES, build_engine

CPU = torch.device("cpu")


@pytest.fixture
def settings():
    return settings_of({"world_size": 1, "parallel": {}})


def test_the_recipe_names_the_engine(process_group, settings):
    engine = build_engine(settings, objective=NextToken(), device=CPU)
    assert type(engine) is ENGINES[settings.parallel.engine]
    assert engine.is_main
    assert (engine.data_rank, engine.data_size) == (0, 1)


def test_engines_can_share_a_mesh_and_no_weights(process_group, settings):
    one = build_engine(settings, objective=NextToken(), device=CPU)
    other = build_engine(dataclasses.replace(settings, seed=6), objective=NextToken(), device=CPU, mesh=one.mesh)
    assert other.mesh is one.mesh
    assert one.weights_digest() != other.weights_digest()
    again = build_engine(settings, objective=NextToken(), device=CPU, mesh=one.mesh)
    assert again.weights_digest() == one.weights_digest(), "weights are a function of the seed"
