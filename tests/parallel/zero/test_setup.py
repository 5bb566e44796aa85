"""The configuration that DeepSpeed gets, without DeepSpeed; test_deepspeed.py starts it."""

import pytest
import torch
from layout_runs import settings_of

from parallel.zero.setup import configuration

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def keys(device=CPU, **parallel):
    settings = settings_of({"world_size": 2, "parallel": {"engine": "deepspeed", "data": 2, **parallel}})
    return configuration(settings, device=device, n_elements=1001)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_divides_or_clips_gradients(stage, precision):
    found = keys(zero_stage=stage, precision=precision)
    assert found["gradient_accumulation_steps"] == 1
    assert found["managed_gradient_accumulation"] is False
    assert (found["gradient_clipping"], found["prescale_gradients"], found["gradient_predivide_factor"]) == (
        0,
        False,
        1,
    )
    assert found["gradient_allreduce_op"] == ("mean" if stage == 3 else "sum"), "ZeRO 3 has the mean only"
    assert found["communication_data_type"] == found["data_types"]["grad_accum_dtype"] == "fp32"
    assert found["bf16"]["enabled"] is (precision == "bf16")
    assert found["train_batch_size"] == 2 * found["train_micro_batch_size_per_gpu"]


def test_offload_moves_parameters_in_zero_3_alone():
    for stage in (1, 2, 3):
        zero = keys(zero_stage=stage, offload=True)["zero_optimization"]
        assert zero["offload_optimizer"]["device"] == "cpu"
        assert ("offload_param" in zero) is (stage == 3)
        assert "offload_optimizer" not in keys(zero_stage=stage)["zero_optimization"]
    assert keys(zero_stage=3, offload=True, device=CUDA)["zero_optimization"]["offload_param"]["pin_memory"]


def test_buffers_are_no_larger_than_the_model():
    zero = keys(zero_stage=2)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1002, "DeepSpeed wants an even number"


def test_deepspeed_computes_no_norm_where_it_need_not():
    assert keys(zero_stage=1)["zero_optimization"]["compute_grad_norm"] is False
    for parallel in ({"zero_stage": 3}, {"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 2, "offload": True}):
        assert keys(**parallel)["zero_optimization"]["compute_grad_norm"] is True, "DeepSpeed refuses to do without"
