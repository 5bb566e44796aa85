"""The adapter of one projection: what it adds, how it starts, and the merged weight."""

import math

import torch

from gpt.adapters.low_rank import LowRankAdapter, add_adapter, merged, start_of_adapter
from gpt.model.initialisation import Start, fill


def test_a_projection_with_an_adapter_equals_the_merged_one():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4).double()
    adapter = LowRankAdapter(4, 6, rank=2, scale=1.5).double()
    torch.nn.init.normal_(adapter.a)
    torch.nn.init.normal_(adapter.b)
    weight = merged(layer.weight, adapter.a, adapter.b, scale=1.5)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = torch.nn.functional.linear(x, weight, layer.bias)
    assert not torch.allclose(layer(x), expected)
    add_adapter(layer, adapter)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "adapter.a", "adapter.b"]


def test_a_merged_bf16_weight_is_rounded_once():
    torch.manual_seed(0)
    weight = torch.randn(8, 8).bfloat16()
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    expected = (weight.double() + 0.5 * b.double() @ a.double()).bfloat16()
    assert merged(weight, a, b, scale=0.5).dtype == torch.bfloat16
    torch.testing.assert_close(merged(weight, a, b, scale=0.5), expected, rtol=2**-8, atol=0)


def test_a_is_uniform_and_b_is_zero():
    """PEFT: Kaiming uniform with a = sqrt(5), whose bound is sqrt(6 / (1 + 5)) / sqrt(in)."""
    shape = (64, 400)
    start = start_of_adapter("blocks.0.mlp.down.adapter.a", shape)
    assert start == Start(bound=1 / 20)
    assert start_of_adapter("blocks.0.mlp.down.adapter.b", (400, 64)) == Start()
    assert start_of_adapter("blocks.0.mlp.down.weight", shape) is None
    values = torch.empty(shape)
    fill(values, "a", start, seed=1, shape=shape, indices=[torch.arange(n) for n in shape])
    theirs = torch.empty(shape)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    for numbers in (values, theirs):
        assert float(numbers.abs().max()) <= 1 / 20
        assert abs(float(numbers.std()) - 1 / 20 / math.sqrt(3)) < 3e-4
        assert abs(float(numbers.mean())) < 1e-3
    part = torch.empty(64, 100)
    fill(part, "a", start, seed=1, shape=shape, indices=[torch.arange(64), torch.arange(100, 200)])
    assert torch.equal(part, values[:, 100:200])
