"""Layers of tensor ranks on plain tensors, on one process: their results from the parameters that they are given."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from parallel.axes.local_layers import GatheredHead, LocalKeyValue, ReducedLinear
from parallel.axes.tensor_parallel import vocabulary_shard

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def with_parameters_of(layer, linear):
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer


def test_the_bias_is_added_once_after_the_sum(process_group):
    linear = nn.Linear(8, 4)
    torch.testing.assert_close(with_parameters_of(ReducedLinear(dist.group.WORLD), linear)(X), linear(X))


def test_a_rank_computes_the_heads_of_its_own_queries():
    """Heads 1 and 2 of 3, each of width 2; head 1 serves one of this rank's queries and head 2 two."""
    linear = nn.Linear(8, 6)
    layer = with_parameters_of(LocalKeyValue(SimpleNamespace(rows=slice(2, 6), d_head=2, repeats=[1, 2])), linear)
    heads = linear(X).view(2, 3, 3, 2)
    torch.testing.assert_close(layer(X), heads[:, :, [1, 2, 2]].flatten(2))


def test_the_head_of_one_rank_has_all_rows(process_group):
    linear = nn.Linear(8, 5, bias=False)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    head = with_parameters_of(GatheredHead(vocabulary_shard(5, 4, mesh.get_group()), mesh.get_group()), linear)
    torch.testing.assert_close(head(X[0]), linear(X[0]))
