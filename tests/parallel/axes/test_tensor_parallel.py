"""What tensor parallelism asks of torch, and how its layers compute, on one process."""

import pytest
import torch
import torch.distributed as dist
from layout_runs import MODERN, settings_of, tokens_of_step
from torch._C._distributed_c10d import HashStore
from torch.distributed._symmetric_memory import is_symm_mem_enabled_for_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.losses.batch import Batch
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.objective import NextToken
from parallel.axes.data_parallel import accumulate, apply_data_parallel
from parallel.axes.initialisation import initialise_shards
from parallel.axes.sequence_shards import tensor_ranks
from parallel.axes.stage import ModelStage, canonical_parameters
from parallel.axes.tensor_parallel import allow_asynchronous, apply_tensor_parallel
from parallel.layout.mesh import build_mesh


def test_tensor_ranks_are_entered_for_asynchronous_messages():
    """Without it the compiler's pass leaves every message as it is, and says nothing."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        name = mesh.get_group().group_name
        assert not is_symm_mem_enabled_for_group(name)
        allow_asynchronous(mesh)
        assert is_symm_mem_enabled_for_group(name)
    finally:
        dist.destroy_process_group()


class DTensorOperations(TorchDispatchMode):
    """Counts the operations that DTensor dispatches."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            self.count += 1
            return NotImplemented
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keys", [{}, MODERN], ids=["gpt3", "modern"])
def test_a_step_computes_on_plain_tensors_and_parameters_stay_dtensors(keys):
    """One tensor rank, wrapped as several are: it must give the gradients of the model that nothing wraps."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        settings = settings_of({"world_size": 1, "parallel": {}, "model": {**keys, "n_layers": 2}})
        mesh = build_mesh(settings.layout, torch.device("cpu"))
        objective, tokens = NextToken(), tokens_of_step(0)
        loss = objective.loss(compile=False)
        with torch.device("meta"):
            model = GPT(settings.model)
        ranks = tensor_ranks(mesh.tensor, splits_sequence=True, splits_backward=False)
        apply_tensor_parallel(model, settings.model, mesh.tensor, ranks)
        stage = ModelStage(model, loss, attention_mask=objective.attention_mask, ranks=ranks)
        apply_data_parallel(stage, settings.parallel, mesh)
        stage.to_empty(device="cpu")
        initialise_shards(canonical_parameters(stage), settings.model, seed=1)
        batch = Batch(tokens[:, :-1], tokens[:, 1:])
        with DTensorOperations() as operations:
            accumulate(stage, list(batch.split(2)), zero_stage=0)
        assert operations.count == 0
        reference = GPT(settings.model)
        initialise(reference, settings.model, seed=1)
        plain = ModelStage(reference, loss, attention_mask=objective.attention_mask, ranks=None)
        for part in batch.split(2):
            plain(part.inputs, part).backward()
        expected = dict(canonical_parameters(plain))
        for name, parameter in canonical_parameters(stage):
            assert {"dp_shard", "tp"} <= set(parameter.grad.device_mesh.mesh_dim_names), name
            torch.testing.assert_close(parameter.grad.to_local(), expected[name].grad, rtol=1e-5, atol=1e-6)
    finally:
        dist.destroy_process_group()
