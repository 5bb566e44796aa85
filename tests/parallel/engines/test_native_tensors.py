"""The names under which the native engine saves, and the second copy of a tied weight on one rank."""

import torch
from torch import nn

from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native_tensors import NativeTensors
from parallel.engines.optimizer_state import OptimizerState


def test_a_tied_weight_is_saved_once_and_loaded_into_both_copies():
    first, between, last = (nn.Parameter(torch.full((2, 3), float(i))) for i in range(3))
    parameters = [("embed.tokens.weight", first), ("blocks.0.weight", between), ("embed.tokens.weight", last)]
    tensors = NativeTensors(parameters, OptimizerState(parameters, OptimizerConfig(learning_rate=0.1)), [first, last])
    saved = tensors.by_name()
    assert len(saved) == 2 * 3, "two weights, each with two moments"
    assert saved["model.embed.tokens.weight"].data_ptr() == first.data_ptr()
    for tensor in saved.values():
        tensor.fill_(7.0)
    tensors.finish_load(saved, {"optimizer_steps": 5})
    assert last.eq(7.0).all()
    assert tensors.optimizer.tensors_of(last)["exp_avg_sq"].eq(7.0).all()
    assert tensors.optimizer.steps == 5
    first.data.fill_(8.0)
    tensors.finish_load(tensors.weights(), None)
    assert last.eq(8.0).all()
    assert tensors.optimizer.steps == 5
