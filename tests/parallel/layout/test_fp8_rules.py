"""Recipes whose products cannot be in fp8 are refused in one line that says why."""

from dataclasses import replace

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.layout.config import ParallelConfig
from parallel.layout.fp8_rules import check_fp8

MODEL = ModelConfig(vocab_size=64, n_ctx=64, n_layers=2, d_model=2048, n_heads=16)
FP8 = ParallelConfig(precision="fp8")


def test_a_wide_model_is_accepted_and_a_narrow_one_if_the_recipe_says_so():
    check_fp8(FP8, MODEL, micro_batch_tokens=64)
    check_fp8(replace(FP8, tensor=4), replace(MODEL, n_kv_heads=2), micro_batch_tokens=64)
    narrow = replace(MODEL, d_model=1024)
    check_fp8(replace(FP8, fp8_min_width=1024), narrow, micro_batch_tokens=64)
    check_fp8(replace(FP8, precision="bf16"), narrow, micro_batch_tokens=3)


@pytest.mark.parametrize(
    ("parallel", "model", "tokens", "said"),
    [
        ({}, {"d_model": 1024}, 64, "parallel.fp8_min_width = 1024 to do it anyway"),
        ({"pipeline": 2, "schedule": "zbv_zero_bubble"}, {}, 64, 'Use parallel.schedule = "interleaved_1f1b"'),
        ({"tensor": 2}, {"d_ff": 8208}, 64, "and model.d_ff = 8208 is invalid: .* a width of 8192 or 8224"),
        ({}, {}, 24, "24 tokens in a micro-batch .* Use 16 or 32"),
    ],
)
def test_products_that_cannot_be_in_fp8_are_refused(parallel, model, tokens, said):
    with pytest.raises(ConfigError, match=said) as refused:
        check_fp8(replace(FP8, **parallel), replace(MODEL, **model), micro_batch_tokens=tokens)
    assert "\n" not in str(refused.value)
