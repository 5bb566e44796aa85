"""Dropout in the native engine: recomputation and micro-batches draw the same masks, and evaluation draws none.

tests/launch/training/test_sft.py compares layouts, and a run with a loop in float64.
"""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.dropout import row_keys
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

MODEL = ModelConfig(vocab_size=128, n_ctx=32, n_layers=3, d_model=32, n_heads=4)
ROWS, STEPS = 4, 3


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch(*, seed=1, keys=True):
    ids = torch.randint(0, 128, (ROWS, 33), generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(row_keys(seed, np.arange(ROWS))) if keys else None
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), row_keys=rows)


def engine(*, micro_batch_size=2, rate=0.3, **parallel):
    config = ParallelConfig(precision="fp32", **parallel)
    sizes = BatchConfig(micro_batch_size, ROWS * MODEL.n_ctx)
    layout = resolve_layout(config, sizes, model=MODEL, seq_len=MODEL.n_ctx, world_size=1)
    optimizer = OptimizerConfig(learning_rate=1e-2)
    settings = EngineSettings(MODEL, config, layout, optimizer, micro_batch_size, 7, residual_dropout=rate)
    return NativeEngine(settings, objective=NextToken(), device=torch.device("cpu"))


def train(built, rows):
    """The losses and gradient norms of a few steps."""
    found = []
    for _ in range(STEPS):
        built.forward_backward(rows)
        result = built.optimizer_step(1e-2)
        found += [result.loss.mean, result.gradient_norm]
    return found


@pytest.fixture(scope="module")
def plain(process_group):
    return train(engine(), batch())


@pytest.mark.parametrize(
    "settings",
    [{"recompute": "full"}, {"recompute": "selective"}, {"micro_batch_size": 1}, {"micro_batch_size": 4}],
    ids=str,
)
def test_the_masks_are_the_same(plain, settings):
    assert train(engine(**settings), batch()) == pytest.approx(plain, rel=1e-5)


@pytest.mark.rehearse
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_compiled_blocks_draw_the_same_masks(plain, recompute):
    assert train(engine(compile=True, recompute=recompute), batch()) == pytest.approx(plain, rel=1e-5)


def test_other_keys_draw_other_masks(plain):
    assert train(engine(), batch(seed=2))[0] != pytest.approx(plain[0], rel=1e-4)


def test_evaluation_and_batches_without_keys_drop_nothing():
    dropping, whole = engine(), engine(rate=0.0)
    without = batch(keys=False)
    assert dropping.evaluate([without]).mean == whole.evaluate([without]).mean
    assert train(dropping, without) == train(whole, without)
    assert train(engine(rate=0.0), batch()) == train(engine(rate=0.0), without), "a rate of 0 needs no keys"
