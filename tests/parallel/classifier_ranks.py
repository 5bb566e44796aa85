"""A rank that evaluates and trains a classifier on a few texts, on one layout after the other."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from gradient_ranks import save_gradients
from reward_ranks import MODELS, dist_size

from gpt.data.sampling import Samples
from gpt.losses.marks import PADDING
from gpt.model.dropout import row_keys
from gpt.moderation.config import ClassifierConfig
from gpt.token_files.label_states import encode_states
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

ROWS, ROW, MICRO, STEPS, CATEGORIES = 8, 32, 2, 2, 8  # the shipped taxonomy has 8 categories
MODEL_OF = {"gpt3": "gpt3", "modern": "modern", "attention": "gpt3"}  # by the name of the objective
FROZEN = {"gpt3": (), "modern": ("embed.*", "blocks.0.*", "blocks.1.*"), "attention": ()}
OBJECTIVES = {
    "gpt3": {"head": "mlp", "hidden": 8, "head_dropout": 0.3, "class_weights": {"SH": 3.0}},
    "modern": {
        "head": "shared_mlp",
        "hidden": 12,
        "head_dropout": 0.2,
        "attention": "full",
        "pool": "mean",
        "focal_gamma": 1.5,
        "adversarial_weight": 0.5,
        "critic_hidden": 10,
        "critic_clip": 0.03,
    },
    "attention": {
        "head": "mlp",
        "hidden": 8,
        "head_dropout": 0.3,
        "pool": "attention",
        "queries": 3,
        "adversarial_weight": 0.5,
        "critic_hidden": 10,
        "critic_clip": 0.03,
    },
}


def objective_of(name):
    return ClassifierConfig(**OBJECTIVES[name]).build(z_loss=0.0)


def optimizer_of(name):
    # an eps far above rounding, so that Adam does not turn the noise of a gradient near 0 into a step
    return OptimizerConfig(learning_rate=1e-2, eps=1e-4, frozen=FROZEN[name])


def batch_of_step(objective, step):
    """Rows of several texts, each with labels, unknown ones among them; every third text has none at all."""
    draw = np.random.default_rng(step)
    shape = ROWS, ROW + 1
    tokens, ids, labels = np.zeros(shape, np.int64), np.full(shape, PADDING), np.zeros(shape, np.int64)
    for row in range(ROWS):
        at, text = 0, 0
        while at < ROW - 10:
            length = int(draw.integers(3, 10))
            tokens[row, at : at + length], ids[row, at : at + length] = draw.integers(0, 120, size=length), text
            at, text = at + length, text + 1
            if text % 3:
                labels[row, at - 1] = encode_states(draw.integers(0, 3, size=CATEGORIES))[0]
    lengths = {"labels": np.full(ROWS, ROW)}
    batch = objective.batch(Samples(tokens, ids, {"labels": labels}, lengths))
    return replace(batch, row_keys=torch.from_numpy(row_keys(7, np.arange(ROWS) + step * ROWS)))


def share_of(batch, engine):
    return [*batch.split(ROWS // engine.data_size)][engine.data_rank]


def work(rank, layouts, folder):
    """`layouts`: {name: [objective, parallel settings]}, all of one world size. Rank 0 writes result.json with the
    numbers of each layout. NAME/0/gradients.npz has the gradients of the first step, NAME/1 the weights at the end."""
    layouts = json.loads(layouts)
    torch.set_num_threads(1)
    world_size = dist_size(layouts)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=90))
    results = {}
    for name, (kind, parallel) in layouts.items():
        objective = objective_of(kind)
        engine = build(kind, objective, parallel, world_size)
        evaluated = engine.evaluate(
            replace(part, row_keys=None) for part in share_of(batch_of_step(objective, 99), engine).split(MICRO)
        )
        trained = []
        for step in range(STEPS):
            engine.forward_backward(share_of(batch_of_step(objective, step), engine))
            if step == 0:
                save(engine.named_gradients(), engine.mesh, Path(folder, name, "0"))
            result = engine.optimizer_step(1e-2)
            trained += [result.loss.mean, result.loss.tokens, *result.loss.metrics.values(), result.gradient_norm]
        whole = [(name, p.full_tensor() if hasattr(p, "full_tensor") else p) for name, p in engine.parameters]
        save(((key, p.detach().clone()) for key, p in whole), engine.mesh, Path(folder, name, "1"))
        results[name] = {
            "evaluated": [evaluated.mean, evaluated.tokens, *evaluated.metrics.values()],
            "trained": trained,
        }
        dist.barrier()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def save(named, mesh, folder):
    mine = [(name, tensor.numpy().copy()) for name, tensor in named]
    folder.mkdir(exist_ok=True, parents=True)
    save_gradients(mine, mesh, folder)


def build(name, objective, parallel, world_size):
    model = MODELS[MODEL_OF[name]]
    config = ParallelConfig(**{"precision": "fp32", **parallel})
    batch = BatchConfig(MICRO, ROWS * ROW)
    layout = resolve_layout(config, batch, model=model, seq_len=ROW, world_size=world_size, restarts_positions=True)
    settings = EngineSettings(model, config, layout, optimizer_of(name), MICRO, seed=5)
    return build_engine(settings, objective=objective, device=torch.device("cpu"))
