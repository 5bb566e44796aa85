"""Digests of weights in one process. tests/launch/commands/test_parity.py compares layouts by them."""

import torch
from torch import nn

from parallel.health.weight_digests import model_digest, weight_digests


def test_a_digest_depends_on_bits_type_and_shape_and_not_on_memory_layout():
    weight = torch.arange(12.0).view(3, 4)
    forms = {
        "same": weight,
        "transposed twice": weight.t().contiguous().t(),
        "other shape": weight.view(4, 3),
        "other type": weight.double(),
        "other sign of zero": torch.where(weight == 0, -0.0, weight),
    }
    digests = weight_digests((name, nn.Parameter(form)) for name, form in forms.items())
    assert digests["same"] == digests["transposed twice"]
    assert len(set(digests.values())) == 4


def test_ranks_that_hold_equal_replicas_count_once_and_unequal_ones_show():
    a, b = {"x": "1", "y": "2"}, {"y": "2", "z": "3"}
    assert model_digest([a, b]) == model_digest([b, a]) == model_digest([{**a, **b}])
    assert model_digest([a, {**b, "y": "4"}]) != model_digest([a, b])
