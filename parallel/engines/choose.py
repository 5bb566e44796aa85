"""Build the engine that a recipe names. Nothing outside parallel/engines/ names a concrete one."""

import torch

from gpt.training.engine import Engine
from gpt.training.objective import Objective
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh

ENGINES = {"native": NativeEngine}


def build_engine(
    settings: EngineSettings,
    *,
    objective: Objective,
    device: torch.device,
    init_weights: bool = True,
    mesh: Mesh | None = None,
) -> Engine:
    """The engine of `parallel.engine`. Needs an initialised default process group of the layout's size.

    `init_weights` False leaves weights as allocated, for a checkpoint to be loaded. `mesh`: the layout's, if it exists
    already; several engines can share one. Every rank must call it.
    """
    engine = ENGINES[settings.parallel.engine]
    return engine(settings, objective=objective, device=device, init_weights=init_weights, mesh=mesh)
