"""Ranks that send nothing, each in a process of its own: torch's caches remember process groups that were destroyed."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from gpt.training.objective import NextToken
from parallel.axes.initialisation import held_indices, initialise_shards
from parallel.axes.stage import ModelStage, canonical_parameters
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import build_mesh
from parallel.parallelize import build_stage

TIMEOUT_S = 200


def on_ranks(work: Callable[[EngineSettings, int], Any], jobs: Iterable[tuple[EngineSettings, int]]) -> list[Any]:
    """The results of `work`, a function of this module, for each (settings, rank), in order."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["parallel.planner.dry_run", "torch.testing._internal.distributed.fake_pg"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        results = [pool.submit(work, settings, rank) for settings, rank in jobs]
        return [result.result(timeout=TIMEOUT_S) for result in results]


@contextmanager
def fake_group(rank, world_size):
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_stage(settings) -> ModelStage:
    """The first stage of this rank."""
    mesh = build_mesh(settings.layout, torch.device("cpu"))
    objective = NextToken()
    return build_stage(
        settings.model,
        settings.parallel,
        mesh,
        index=mesh.stages[0],
        objective=objective,
        loss=objective.loss(compile=False),
        optimizer=settings.optimizer,
    )


def initial_shards(settings, rank):
    """By parameter: the indices that the rank holds in each dimension, and its starting values."""
    with fake_group(rank, settings.layout.world_size):
        parameters = canonical_parameters(first_stage(settings))
        initialise_shards(parameters, settings.model, seed=settings.seed)
        return {
            name: (
                [index.numpy() for index in held_indices(parameter)],
                (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach().numpy(),
            )
            for name, parameter in parameters
        }


def parts_of_stage(settings, rank):
    """Whether the stage has the model's start and end, whether it is tied, and the names of its parameters."""
    with fake_group(rank, settings.layout.world_size):
        stage = first_stage(settings)
        names = [name for name, _ in canonical_parameters(stage)]
        return stage.model.embed is not None, stage.model.head is not None, stage.model.tied, names


def projections_of_stage(settings, rank):
    """How attention and MLP of this rank's first stage compute their first products: names of types."""
    with fake_group(rank, settings.layout.world_size):
        return {type(module.projected).__name__ for module in first_stage(settings).modules() if has_own(module)}


def has_own(module):
    return "projected" in vars(module)
