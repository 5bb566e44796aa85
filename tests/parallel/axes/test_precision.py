"""The arithmetic of each value of parallel.precision."""

import typing

import torch

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from parallel.axes.fp8 import Fp8Linear
from parallel.axes.precision import ARITHMETIC
from parallel.layout.config import Precision


def test_every_precision_has_its_arithmetic():
    assert set(ARITHMETIC) == set(typing.get_args(Precision))
    assert {name: each.compute for name, each in ARITHMETIC.items()} == {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp8": torch.bfloat16,
    }


def test_fp8_changes_the_projections_of_blocks_alone():
    config = ModelConfig(vocab_size=64, n_ctx=16, n_layers=2, d_model=32, n_heads=2)
    for precision, arithmetic in ARITHMETIC.items():
        model = GPT(config)
        names = [name for name, _ in model.named_parameters()]
        arithmetic.set_products(model, None)
        found = [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]
        assert len(found) == (12 if precision == "fp8" else 0)
        assert all(name.startswith("blocks.") for name in found)
        assert [name for name, _ in model.named_parameters()] == names
