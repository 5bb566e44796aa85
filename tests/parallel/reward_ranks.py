"""A rank that evaluates and differentiates a reward model on a few prompts, on one layout after the other."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from gradient_ranks import save_gradients

from gpt.data.sampling import Samples
from gpt.losses.marks import PADDING
from gpt.model.config import ModelConfig
from gpt.post_training.reward import Reward
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

N_CTX, ROW, PROMPTS = 16, 64, 8
MODELS = {
    "gpt3": ModelConfig(vocab_size=120, n_ctx=N_CTX, n_layers=4, d_model=32, n_heads=4),
    "modern": ModelConfig(
        vocab_size=120,
        n_ctx=N_CTX,
        n_layers=4,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=False,
    ),
}


def prompts():
    """One prompt a row, with one to seven completions of different lengths and levels; one has ties only."""
    draw = np.random.default_rng(4)
    shape = PROMPTS, ROW + 1
    tokens, ids, marks = np.zeros(shape, np.int64), np.full(shape, PADDING), np.zeros(shape, np.int64)
    for row in range(PROMPTS):
        at = 0
        for _ in range(row or 4):
            length = int(draw.integers(3, 10))
            tokens[row, at : at + length], ids[row, at : at + length] = draw.integers(0, 120, size=length), 0
            at += length
            marks[row, at - 1] = 1 + (row > 2) * draw.integers(0, 3)
    return Samples(tokens, ids, {"marks": marks})


def work(rank, layouts, folder):
    """`layouts`: {name: [model, pool, parallel settings]}, all of one world size. Rank 0 writes result.json with the
    numbers of each layout, and its gradients to NAME/gradients.npz."""
    layouts = json.loads(layouts)
    torch.set_num_threads(1)
    world_size = dist_size(layouts)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=90))
    results = {}
    for name, (model, pool, parallel) in layouts.items():
        engine = build(MODELS[model], pool, parallel, world_size)
        share = PROMPTS // engine.data_size
        first = engine.data_rank * share
        batch = Reward().batch(prompts())
        mine = next(iter([*batch.split(share)][engine.data_rank :]))
        assert torch.equal(mine.inputs, batch.inputs[first : first + share])
        evaluated = engine.evaluate(mine.split(1))
        engine.forward_backward(mine)
        gradients = [(name, gradient.numpy().copy()) for name, gradient in engine.named_gradients()]
        own = Path(folder, name)
        own.mkdir(exist_ok=True)
        save_gradients(gradients, engine.mesh, own)
        step = engine.optimizer_step(1e-3)
        results[name] = {
            "evaluated": [evaluated.mean, evaluated.tokens, *evaluated.metrics.values()],
            "trained": [step.loss.mean, step.loss.tokens, *step.loss.metrics.values(), step.gradient_norm],
        }
        dist.barrier()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def dist_size(layouts):
    sizes = {
        int(np.prod([parallel.get(axis, 1) for axis in ("tensor", "pipeline", "data")]))
        for *_, parallel in layouts.values()
    }
    (size,) = sizes
    return size


def build(model, pool, parallel, world_size):
    config = ParallelConfig(**{"precision": "fp32", **parallel})
    batch = BatchConfig(1, PROMPTS * ROW)
    layout = resolve_layout(config, batch, model=model, seq_len=ROW, world_size=world_size, restarts_positions=True)
    settings = EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), 1, seed=5)
    return build_engine(settings, objective=Reward(pool), device=torch.device("cpu"))
