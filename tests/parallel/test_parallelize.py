"""The parts of a model that ranks build: which layers, which parameters train, and the form for inference."""

import dataclasses

import pytest
import torch
from fake_ranks import on_ranks, parts_of_stage, projections_of_stage
from layout_runs import MODEL, OPTIMIZER, settings_of

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import ScalarHead
from gpt.training.objective import NextToken
from parallel.axes.stage import canonical_parameters
from parallel.layout.mesh import build_mesh
from parallel.parallelize import build_inference_stage, build_stage, parameter_names

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Reward(NextToken):
    """An objective whose head predicts no tokens."""

    def head(self, config):
        return ScalarHead(config)


def stage_of(settings, *, index=0, objective=None, optimizer=OPTIMIZER):
    objective = objective or NextToken()
    return build_stage(
        settings.model,
        settings.parallel,
        build_mesh(settings.layout, CPU),
        index=index,
        objective=objective,
        loss=NextToken().loss(compile=False),
        optimizer=optimizer,
    )


def test_each_stage_has_its_layers_and_ends():
    """Both ends know that they are tied, though neither sees the other."""
    settings = settings_of({"world_size": 2, "parallel": {"pipeline": 2}})
    first, last = on_ranks(parts_of_stage, [(settings, rank) for rank in range(2)])
    assert first[:3] == (True, False, True)
    assert last[:3] == (False, True, True)
    assert {name.split(".")[1] for name in first[3] if name.startswith("blocks")} == {"0", "1"}
    assert {name.split(".")[1] for name in last[3] if name.startswith("blocks")} == {"2", "3"}
    assert set(first[3]) & set(last[3]) == {"embed.tokens.weight"}
    assert set(first[3]) | set(last[3]) == set(parameter_names(settings.model, NextToken()))


def test_messages_overlap_where_no_backward_pass_is_split():
    """A schedule without a pipeline splits none, nor does DualPipeV with recomputed blocks."""
    zero_bubble, dual = {"tensor": 2, "schedule": "zbv_zero_bubble"}, {"tensor": 2, "schedule": "dualpipev"}
    runs = [(2, zero_bubble), (4, {**zero_bubble, "pipeline": 2}), (4, {**dual, "pipeline": 2, "recompute": "full"})]
    settings = [settings_of({"world_size": size, "parallel": parallel}) for size, parallel in runs]
    found = on_ranks(projections_of_stage, [(each, 0) for each in settings])
    assert found == [{"_Overlapped"}, {"_Gathered"}, {"_Overlapped"}]


def test_frozen_parameters_need_no_gradient(process_group):
    settings = settings_of({"world_size": 1, "parallel": {"recompute": "full"}, "model": {"n_layers": 2}})
    frozen = dataclasses.replace(OPTIMIZER, frozen=("embed.*", "blocks.1.*"))
    trained = {name for name, p in canonical_parameters(stage_of(settings, optimizer=frozen)) if p.requires_grad}
    names = parameter_names(settings.model, NextToken())
    assert trained == {name for name in names if not name.startswith(("embed.", "blocks.1."))}
    untrained = stage_of(settings, optimizer=None)
    assert not any(parameter.requires_grad for parameter in untrained.parameters())


def test_names_are_those_of_one_process(process_group):
    settings = settings_of({"world_size": 1, "parallel": {}, "model": {"n_layers": 2}})
    assert parameter_names(settings.model, NextToken()) == [name for name, _ in GPT(settings.model).named_parameters()]
    names = parameter_names(settings.model, Reward())
    assert {"head.value.weight", "head.value.bias", "embed.tokens.weight"} <= set(names)
    assert not stage_of(settings, objective=Reward()).model.tied, "a scalar head has a weight of its own"


def test_a_stage_for_inference_is_whole_tied_and_in_its_dtype(process_group):
    settings = settings_of({"world_size": 1, "parallel": {}, "model": {"n_layers": 2}})
    stage = build_inference_stage(settings.model, build_mesh(settings.layout, CPU), index=0, dtype=torch.bfloat16)
    assert not stage.model.training
    assert {parameter.dtype for parameter in stage.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert stage.model.head.weight is stage.model.embed.tokens.weight


def test_buffers_of_an_objectives_model_are_refused():
    """They would hold what the memory held before: neither filled nor saved."""

    class WithBuffer(NextToken):
        def head(self, config):
            head = super().head(config)
            head.register_buffer("scale", torch.ones(1))
            return head

    with pytest.raises(ConfigError, match=r"holds buffers \(head\.scale\)"):
        parameter_names(ModelConfig(**MODEL), WithBuffer())
