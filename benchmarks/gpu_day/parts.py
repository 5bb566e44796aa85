"""The parts of the GPU day, the most valuable first. A part is a generator of checks in a module beside this one."""

import importlib
from dataclasses import dataclass
from typing import cast

from job import PartFunction


@dataclass(frozen=True)
class Part:
    """`function`: MODULE.NAME. `limit_s`: after it the part is ended; what it has yielded is kept."""

    name: str
    title: str
    function: str
    limit_s: float


def load(function: str) -> PartFunction:
    module, _, name = function.partition(".")
    return cast(PartFunction, getattr(importlib.import_module(module), name))


PARTS = (
    Part("doctor", "What this machine is", "runs.doctor", 120),
    Part("tests", "Unit tests that use a GPU", "runs.tests", 600),
    Part("fp32", "One process in fp32 against float64", "numerics.fp32", 240),
    Part("bf16", "One process in bf16 against float64", "numerics.bf16", 240),
    Part("compile", "Compiled blocks against float64", "numerics.compiled", 420),
    Part("fp8", "One process with fp8 products against float64", "numerics.fp8", 240),
    Part("adamw", "Fused AdamW against its formula", "numerics.adamw", 120),
    Part("attention", "Kernels of attention against float64", "attention.attention", 300),
    Part("memory", "The dry run's memory against the allocator", "memory.memory", 420),
    Part("checkpoint", "Background saves", "memory.checkpoint", 300),
    Part("resume", "Kill and resume, bit for bit", "runs.resume", 420),
    Part("hang", "The watchdog on a hung kernel", "runs.hang", 300),
    Part("offload", "Offload to host memory", "numerics.offload", 240),
    Part("writing", "Generation and few-shot evaluation", "runs.writing", 420),
    Part("speed_125m", "Speed of 125M beside its peers", "speed.small", 600),
    Part("speed_350m", "Speed of 350M beside its peers", "speed.medium", 600),
    Part("speed_1.3b", "Speed of 1.3B beside its peers", "speed.large", 600),
    Part("parity", "Several GPUs: every layout against one process", "several.parity", 600),
    Part("overlap", "Several GPUs: speed and overlap by layout", "several.overlap", 600),
)
