"""Kernels that a recipe names, and the recipes that they cannot serve."""

import pytest

from gpt.errors import ConfigError
from gpt.model.attention_kernels import check_kernel, kernels_for

PLAIN = {"half": True, "d_head": 128, "shares_heads": False, "segments": False, "deterministic": False}


def test_data_centre_hopper_and_blackwell_try_cudnn_first():
    first = {capability: kernels_for(capability)[0] for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))}
    assert first == {(8, 0): "flash", (8, 9): "flash", (9, 0): "cudnn", (10, 0): "cudnn", (12, 0): "flash"}


@pytest.mark.parametrize(
    ("kernel", "change", "said"),
    [
        ("flash", {"segments": True}, 'FlexAttention\'s. Use parallel.attention = "auto"'),
        ("math", {"segments": True}, "FlexAttention's"),
        ("cudnn", {"half": False}, "computes in bf16 only"),
        ("flash", {"half": False}, 'Use parallel.precision = "bf16" or parallel.attention = "auto"'),
        ("cudnn", {"d_head": 100}, "a multiple of 8, and the model's is 100"),
        ("flash", {"d_head": 264}, "at most 256, and the model's is 264"),
        ("efficient", {"shares_heads": True}, "share a key-value head"),
        ("cudnn", {"deterministic": True}, "not deterministic"),
    ],
)
def test_a_kernel_that_cannot_serve_the_recipe_is_refused(kernel, change, said):
    check_kernel(kernel, **PLAIN)
    check_kernel("auto", **{**PLAIN, **change})
    with pytest.raises(ConfigError) as refused:
        check_kernel(kernel, **{**PLAIN, **change})
    assert str(refused.value).startswith(f'parallel.attention = "{kernel}" is invalid: ')
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_kernels_that_take_any_input_serve_fp32():
    for kernel in ("efficient", "math"):
        check_kernel(kernel, **{**PLAIN, "half": False})
