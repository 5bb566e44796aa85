"""Megatron's weights as our stages, for generation and evaluation of single tokens, and as replicas to compare."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from gpt.training.objective import NextToken
from parallel.axes.gradients import local
from parallel.axes.stage import ModelStage, canonical_parameters
from parallel.engines.settings import EngineSettings
from parallel.health.replica_check import ReplicaCheck
from parallel.inference.local_stage import stages_for_inference
from parallel.layout.mesh import Mesh
from parallel.megatron.optimizer import MAIN, ParameterState
from parallel.megatron.parameters import MegatronParameter
from parallel.parallelize import build_inference_stage


@torch.no_grad()
def copied_stages(
    settings: EngineSettings, mesh: Mesh, parameters: Sequence[MegatronParameter], *, dtype: torch.dtype
) -> list[ModelStage]:
    """This rank's stages of our model with Megatron's weights. Memory: another copy of them in `dtype`."""
    stages = [build_inference_stage(settings.model, mesh, index=index, dtype=dtype) for index in mesh.stages]
    targets = {name: local(parameter) for stage in stages for name, parameter in canonical_parameters(stage)}
    for one in parameters:
        for weight, part in zip(one.weights, one.split(one.parameter.detach()), strict=True):
            targets[weight.name].copy_(part)
    return stages_for_inference(stages, mesh, config=settings.model, objective=NextToken(), free=False)


def whole_weights(parameters: Sequence[MegatronParameter], state: ParameterState) -> Iterator[tuple[str, Tensor]]:
    """Each of our weights, fp32, over the tensor ranks of its stage. Collective; memory: one parameter."""
    for one in parameters:
        for weight, part in zip(one.weights, one.split(state.read(one.parameter, MAIN)), strict=True):
            yield weight.name, weight.on_tensor_ranks(part.contiguous())


def replica_check(parameters: Sequence[MegatronParameter], state: ParameterState, mesh: Mesh) -> ReplicaCheck:
    """Compare the copies of Megatron's parameters, and of their moments where data ranks do not share those out."""
    return ReplicaCheck(
        [
            (one.name, _placed(one, mesh), (one.parameter.data, *state.held_tensors(one.parameter)))
            for one in parameters
        ],
        kinds=("model.", *(f"optimizer.{key}." for key in state.held_keys)),
        device=mesh.device,
    )


def _placed(one: MegatronParameter, mesh: Mesh) -> Tensor:
    """The parameter as a DTensor if tensor ranks hold parts of it: the check reads which part this rank has."""
    if one.tensor_dim is None:
        return one.parameter.data
    return DTensor.from_local(one.parameter.data, mesh.tensor, [Shard(one.tensor_dim)], run_check=False)
