"""Build the engine that a recipe names. Nothing outside parallel/engines/ names a concrete one."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import torch

from gpt.training.engine import Engine
from gpt.training.objective import Objective
from parallel.engines.capabilities import check_engine, check_engine_device, check_installed
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh

ENGINES: dict[str, Any] = {  # class, or "module:class" for one that is imported when it is used
    "native": NativeEngine,
    "deepspeed": "parallel.engines.deepspeed:DeepSpeedEngine",
    "megatron": "parallel.engines.megatron_core:MegatronEngine",
}


def build_engine(
    settings: EngineSettings,
    *,
    objective: Objective,
    device: torch.device,
    init_weights: bool | tuple[str, ...] = True,
    mesh: Mesh | None = None,
) -> Engine:
    """The engine of `parallel.engine`. Needs an initialised default process group of the layout's size.

    `init_weights` False leaves weights as allocated, for a checkpoint to be loaded; names say that these parameters are
    enough, though an engine may initialise all. `mesh`: the layout's, if it exists already; several engines can share
    one. Every rank must call it. ConfigError if the engine is not installed, or does not take these settings.
    """
    name = settings.parallel.engine
    check_installed(name)
    check_engine(settings.parallel, model=settings.model, optimizer=settings.optimizer, adapter=settings.adapter)
    check_engine_device(settings.parallel, device.type)
    engine = ENGINES[name]
    build: Callable[..., Engine] = resolve_name(engine) if isinstance(engine, str) else engine
    return build(settings, objective=objective, device=device, init_weights=init_weights, mesh=mesh)
