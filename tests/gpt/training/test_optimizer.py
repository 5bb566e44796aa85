"""Parameter groups, frozen parameters, and patterns that match nothing."""

import pytest
import torch
from torch import nn

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.training.optimizer import (
    STATE,
    OptimizerConfig,
    ParameterGroup,
    build_optimizer,
    check_patterns,
    is_frozen,
)

MODEL = ModelConfig(vocab_size=20, n_ctx=8, n_layers=2, d_model=8, n_heads=2)


@pytest.fixture
def parameters():
    return list(GPT(MODEL).named_parameters())


def settings_of(optimizer, parameters):
    """Weight decay and learning-rate scale of each parameter, by name."""
    names = {id(parameter): name for name, parameter in parameters}
    return {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_matrices_decay_and_vectors_do_not(parameters):
    found = settings_of(build_optimizer(parameters, OptimizerConfig(1e-3, weight_decay=0.1)), parameters)
    assert found == {name: (0.1 if p.dim() >= 2 else 0.0, 1.0) for name, p in parameters}


def test_the_first_group_that_matches_applies(parameters):
    groups = (
        ParameterGroup(("blocks.0.mlp.*",), lr_scale=0.5, weight_decay=0.01),
        ParameterGroup(("blocks.*.mlp.*", "norm.*"), lr_scale=0.0),
    )
    found = settings_of(build_optimizer(parameters, OptimizerConfig(1e-3, groups=groups)), parameters)
    assert found["blocks.0.mlp.up.weight"] == found["blocks.0.mlp.up.bias"] == (0.01, 0.5), "its decay holds for biases"
    assert found["blocks.1.mlp.up.weight"] == (0.1, 0.0), "without a decay of its own, the usual rule holds"
    assert found["blocks.1.mlp.up.bias"] == found["norm.weight"] == (0.0, 0.0)
    assert found["blocks.0.attention.q.weight"] == (0.1, 1.0)


def test_frozen_parameters_are_in_no_group(parameters):
    config = OptimizerConfig(1e-3, frozen=("embed.*", "blocks.0.*"))
    found = settings_of(build_optimizer(parameters, config), parameters)
    frozen = {name for name, _ in parameters if is_frozen(name, config)}
    assert frozen == {name for name, _ in parameters if name.startswith(("embed.", "blocks.0."))}
    assert found.keys() == {name for name, _ in parameters} - frozen


@pytest.mark.parametrize("kind", STATE)
def test_torch_keeps_the_state_that_checkpoints_name(kind):
    weight = nn.Parameter(torch.ones(2, 2))
    config = OptimizerConfig(1e-3, kind=kind)
    optimizer = build_optimizer([("weight", weight)], config)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight].keys() - {"step"} == set(config.state)


def test_a_pattern_that_matches_nothing_names_the_parameters(parameters):
    names = [name for name, _ in parameters]
    check_patterns(names, OptimizerConfig(1e-3, frozen=("blocks.1.*",), groups=(ParameterGroup(("norm.*",)),)))
    with pytest.raises(ConfigError, match=r"optimizer\.frozen\[1\] = 'block\.\*' is invalid: it matches no") as error:
        check_patterns(names, OptimizerConfig(1e-3, frozen=("embed.*", "block.*")))
    assert "blocks.*.attention.q.weight" in str(error.value)
    assert str(error.value).count("attention.q.weight") == 1, "once for all blocks"
    group = ParameterGroup(("norm.*", "head.*"))
    with pytest.raises(ConfigError, match=r"groups\[0\]\.parameters\[1\] = 'head\.\*'.*tied to embed\.tokens\.weight"):
        check_patterns(names, OptimizerConfig(1e-3, groups=(group,)))  # a tied head has its embedding's name


def test_freezing_everything_is_refused(parameters):
    with pytest.raises(ConfigError, match="leaves no parameter to train"):
        check_patterns([name for name, _ in parameters], OptimizerConfig(1e-3, frozen=("*",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(0.0), "optimizer.learning_rate = 0.0"),
        (lambda: OptimizerConfig(1e-3, beta2=1.0), "optimizer.beta2 = 1.0"),
        (lambda: OptimizerConfig(1e-3, momentum=-0.1), "optimizer.momentum = -0.1"),
        (lambda: OptimizerConfig(1e-3, weight_decay=-1.0), "optimizer.weight_decay = -1.0"),
        (lambda: OptimizerConfig(1e-3, max_gradient_norm=float("inf")), "optimizer.max_gradient_norm = inf"),
        (lambda: ParameterGroup(()), "parameters is empty"),
        (lambda: ParameterGroup(("a",), lr_scale=-1.0), "lr_scale = -1.0"),
        (lambda: ParameterGroup(("a",), weight_decay=float("nan")), "weight_decay = nan"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
