"""A rank that trains on preferences beside a frozen reference model, on one layout after the other."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from gradient_ranks import save_gradients
from reward_ranks import MODELS, PROMPTS, ROW, dist_size, prompts

from gpt.data.sampling import Samples
from gpt.post_training.dpo import Preferences
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.choose import build_engine
from parallel.engines.referenced import ReferencedEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

OBJECTIVE, LR, POLICY_SEED, REFERENCE_SEED = Preferences(0.5), 3e-3, 5, 6


def rankings():
    """The prompts of the reward model's test, of which a third of the tokens is not learned."""
    samples = prompts()
    learned = (np.random.default_rng(7).random(samples.tokens.shape) < 0.67).astype(np.int64)
    return Samples(samples.tokens, samples.segment_ids, {**samples.streams, "learned": learned})


def settings_of(model, parallel, world_size, *, seed=POLICY_SEED):
    config = ParallelConfig(**{"precision": "fp32", **parallel})
    batch = BatchConfig(1, PROMPTS * ROW)
    layout = resolve_layout(config, batch, model=model, seq_len=ROW, world_size=world_size, restarts_positions=True)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=LR), 1, seed=seed)


def build(settings):
    """The engine, and a reference of other weights, so that no implicit reward is 0."""
    options = {"objective": OBJECTIVE, "device": torch.device("cpu")}
    engine = build_engine(settings, **options)
    frozen = replace(settings, optimizer=None, seed=REFERENCE_SEED)
    reference = build_engine(frozen, **options, mesh=engine.mesh)
    return ReferencedEngine(engine, reference, OBJECTIVE)


def work(rank, layouts, folder):
    """`layouts`: {name: [model, parallel settings]}, all of one world size. Rank 0 writes result.json with the numbers
    of each layout, and the gradients of its first step to NAME/gradients.npz."""
    layouts = json.loads(layouts)
    torch.set_num_threads(1)
    world_size = dist_size(layouts)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=90))
    results = {}
    for name, (model, parallel) in layouts.items():
        engine = build(settings_of(MODELS[model], parallel, world_size))
        frozen = engine.reference.weights_digest()
        share = PROMPTS // engine.data_size
        mine = list(OBJECTIVE.batch(rankings()).split(share))[engine.data_rank]
        evaluated = engine.evaluate(mine.split(1))
        losses = []
        for step in range(3):
            engine.forward_backward(mine)
            if step == 0:
                gradients = [(name, gradient.numpy().copy()) for name, gradient in engine.named_gradients()]
                own = Path(folder, name)
                own.mkdir(exist_ok=True)
                save_gradients(gradients, engine.engine.mesh, own)
            result = engine.optimizer_step(LR)
            losses.append(result.loss.mean)
        assert engine.reference.weights_digest() == frozen, "the reference must not move"
        results[name] = {
            "evaluated": [evaluated.mean, evaluated.tokens, *evaluated.metrics.values()],
            "losses": losses,
        }
        dist.barrier()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
