"""A rank that reads the gradients of an engine, and takes the same steps with another that does not read them."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from layout_runs import OPTIMIZER, SEQUENCES, batch_of_step, settings_of

from gpt.training.objective import NextToken
from parallel.engines.choose import build_engine

FROZEN = ("blocks.1.*",)
EMPTY_ROWS = [0, 3]  # of the whole batch: no target, so that data ranks count different numbers of targets


def batch_of_rank(step, engine):
    share = SEQUENCES // engine.data_size
    first = engine.data_rank * share
    batch = batch_of_step(step, slice(first, first + share), documents=False)
    return batch.without_rows([row - first for row in EMPTY_ROWS if first <= row < first + share])


def read_gradients(rank, run, folder):
    """Rank 0 writes the gradients of the first step to gradients.npz; and to result.json, by engine, the results of
    two steps and the final weights."""
    run = json.loads(run)
    torch.set_num_threads(1)
    world_size = run["world_size"]
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=90))
    settings = settings_of(run)
    settings = replace(settings, optimizer=replace(OPTIMIZER, frozen=FROZEN if run.get("frozen") else ()))
    mesh, results = None, []
    for reads in (True, False):
        engine = build_engine(settings, objective=NextToken(), device=torch.device("cpu"), mesh=mesh)
        mesh, figures = engine.mesh, []
        for step in range(2):
            engine.forward_backward(batch_of_rank(step, engine))
            engine.forward_backward(batch_of_rank(step + 100, engine))
            if reads:
                mine = [(name, gradient.numpy().copy()) for name, gradient in engine.named_gradients()]
                if step == 0:
                    save_gradients(mine, mesh, Path(folder))
            figures.append(engine.optimizer_step(OPTIMIZER.learning_rate)[:2])
        results.append([str(figures), engine.weights_digest()])
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def save_gradients(mine, mesh, folder):
    """All ranks of a stage must have equal gradients, and no two stages one of the same name."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (mesh.pipeline_rank, mine))
    merged, holder = {}, {}
    for pipeline_rank, gradients in everyone:
        names = [name for name, _ in gradients]
        assert len(set(names)) == len(names), names
        for name, gradient in gradients:
            assert gradient.dtype == np.float32, name
            assert holder.setdefault(name, pipeline_rank) == pipeline_rank, f"{name} comes from two stages"
            assert np.array_equal(merged.setdefault(name, gradient), gradient), f"{name} differs between ranks"
    if dist.get_rank() == 0:
        np.savez(folder / "gradients.npz", **merged)
