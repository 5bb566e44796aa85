"""The key-value cache: one allocation, appended positions, dropped rows, rewinding, unpacking."""

import pytest
import torch

from gpt.inference.kv_cache import KeyValueCache, make_cache
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT


def test_cache_allocates_once_and_keeps_rows() -> None:
    cache = KeyValueCache(5)
    first = torch.randn(3, 2, 4, 8)
    k, v = cache.append(first, -first)
    again, _ = cache.append(first[:, :, :1], first[:, :, :1])
    assert again.data_ptr() == k.data_ptr()
    assert torch.equal(again, torch.cat([first, first[:, :, :1]], dim=2))
    assert torch.equal(v, -first)
    cache.keep(torch.tensor([2, 0]))
    with pytest.raises(AssertionError):
        cache.append(first[[2, 0], :, :1], first[[2, 0], :, :1])
    assert cache.length == 5


def test_rewinding_overwrites_later_positions() -> None:
    cache = KeyValueCache(6)
    x = torch.randn(1, 2, 5, 8)
    cache.append(x, -x)
    cache.rewind(2)
    k, v = cache.append(x[:, :, :1], x[:, :, 1:2])
    assert torch.equal(k, torch.cat([x[:, :, :2], x[:, :, :1]], dim=2))
    assert torch.equal(v, torch.cat([-x[:, :, :2], x[:, :, 1:2]], dim=2))
    with pytest.raises(AssertionError):
        cache.rewind(4)


def test_unpacking_copies_columns_into_rows() -> None:
    cache = KeyValueCache(6)
    x = torch.randn(1, 2, 6, 8)
    cache.append(x, -x)
    columns = torch.tensor([[0, 1, 5], [0, 2, 3]])
    unpacked = cache.unpack(columns, 4)
    assert unpacked.length == 3
    k, v = unpacked.append(torch.zeros(2, 2, 1, 8), torch.zeros(2, 2, 1, 8))
    for row, own in enumerate(columns):
        assert torch.equal(k[row, :, :3], x[0][:, own])
        assert torch.equal(v[row, :, :3], -x[0][:, own])


def test_a_part_of_a_model_gets_caches_for_its_own_layers() -> None:
    config = ModelConfig(vocab_size=8, n_ctx=8, n_layers=4, d_model=8, n_heads=1)
    assert set(make_cache(GPT(config, range(1, 3), first=False, last=False), 5)) == {"1", "2"}
