"""The options of `triaxial plan`, checked, as a request of the planner."""

import argparse
import math
import re
from dataclasses import dataclass, replace

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig
from parallel.layout.config import ParallelConfig
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.hardware.tables import Cluster, Gpu, Hardware, Stack, find

MAX_GPUS = 1 << 20
_GPUS = re.compile(r"(\d+)(?:\.\.(\d+))?[xX](.+)")
_SPANS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class GpuOption:
    """`--gpus 64..4096xH100`: the numbers of GPUs to plan for, and their name."""

    counts: tuple[int, ...]
    name: str


def parse_gpus(text: str) -> GpuOption:
    """Read `1024xH100` or `64..4096xH100`: a range is its start, doubled up to its end. ConfigError: another form."""
    found = _GPUS.fullmatch(text.strip())
    if found is None:
        example = f"{text.strip()}xH100" if re.fullmatch(r"\d+(\.\.\d+)?", text.strip()) else "1024xH100"
        ranges = "" if ".." in example else ", or 64..4096xH100 for a range"
        raise ConfigError(f"--gpus {text} is invalid: write NUMBERxNAME. Use {example}{ranges}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= MAX_GPUS:
        low, high = sorted((first, last))
        example = f"{low}..{high}" if 1 <= low < high <= MAX_GPUS else "64..4096"
        raise ConfigError(
            f"--gpus {text} is invalid: numbers go from 1 to {MAX_GPUS}, the smaller first. Use {example}x{found[3]}"
        )
    doubled = [first]
    while doubled[-1] * 2 <= last:
        doubled.append(doubled[-1] * 2)
    return GpuOption(tuple(doubled), found[3])


def parse_deadline(text: str | None) -> float | None:
    """Seconds of `30d`, `2w` or `36h`. ConfigError: another form."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--deadline {text} is invalid: write a number with h, d or w. Use 36h, 30d or 2w")
    return float(found[1]) * _SPANS[found[2]]


def check_amounts(args: argparse.Namespace) -> None:
    """ConfigError for an option whose number makes no sense."""
    for name in ("price_per_gpu_hour", "save_seconds", "node_hours_between_failures"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g} is invalid: must be a number above 0")
    if args.nodes_of is not None and not 1 <= args.nodes_of <= MAX_GPUS:
        raise ConfigError(f"--nodes-of {args.nodes_of} is invalid: a node has at least 1 GPU. Use 8")
    if args.keep < 1:
        raise ConfigError(f"--keep {args.keep} is invalid: must be at least 1")


def gpus_here() -> str:
    """The GPUs of this machine as `--gpus` writes them. ConfigError: there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ConfigError(
            "--here: this machine has no GPU that torch sees. Measure its CPU with triaxial doctor --measure, or name "
            "GPUs with --gpus, such as 8xH100"
        )
    return f"{count}x{torch.cuda.get_device_name(0)}"


def plan_request(args: argparse.Namespace, config: RunConfig, hardware: Hardware, gpu: Gpu) -> PlanRequest:
    """The planner's request for a recipe. ConfigError names an unknown network or stack."""
    network = find("network", args.network or gpu.network, hardware.networks)
    parallel = parallel_of(args, config)
    stack = find("stack", args.stack, hardware.stacks) if args.stack else _own_stack(parallel, hardware)
    cluster = Cluster(gpu, network, args.nodes_of or network.node)
    return PlanRequest(
        config.model,
        config.batch,
        config.data.seq_len,
        parallel,
        cluster,
        stack,
        restarts_positions=config.restarts_positions,
    )


def parallel_of(args: argparse.Namespace, config: RunConfig) -> ParallelConfig:
    """The recipe's section with --engine. Another engine than the native one compiles no blocks."""
    if args.engine is None:
        return config.parallel
    parallel = replace(config.parallel, engine=args.engine)
    return parallel if args.engine == "native" else replace(parallel, compile=False, async_tensor=False)


def notes_on_engine(args: argparse.Namespace, config: RunConfig) -> list[str]:
    """Lines about settings of the recipe that --engine does not take, and about the profile of its speed."""
    notes, parallel = list[str](), parallel_of(args, config)
    off = [key for key in ("compile", "async_tensor") if getattr(config.parallel, key) != getattr(parallel, key)]
    if off:
        keys = " and ".join(f"parallel.{key}" for key in off)
        notes.append(f"note: --engine {args.engine} does not take {keys}: planned without")
    if parallel.engine != "native" and args.stack is None:
        notes.append(
            f"note: no measurement of this program with engine {parallel.engine} gave the profile of its speed"
        )
    return notes


def notes_on_adapter(config: RunConfig) -> list[str]:
    """A line if the recipe has adapters, which the planner does not model."""
    if config.adapter is None:
        return []
    return [
        "note: planned as if the whole model trained: with [adapter] a step takes less time and memory. "
        "`triaxial train RECIPE --dry-run` measures the memory"
    ]


def _own_stack(parallel: ParallelConfig, hardware: Hardware) -> Stack:
    """The profile of this program's speed: Megatron-core brings its own layers, the other engines run ours."""
    if parallel.engine == "megatron":
        core, assumed = hardware.stacks["megatron-core"], hardware.stacks["triaxial-eager"]
        return replace(core, spread=max(core.spread, assumed.spread))
    return hardware.stacks["triaxial" if parallel.compile else "triaxial-eager"]
