"""Step time of tensor 2, pipeline 2 and data 2 on two one-thread processes against one two-thread process, beside
torchtitan's own parallelism on the same cores, alternating in one run.

    python benchmarks/layouts.py [--json FILE] [--rounds N] [--compile] [--no-peer] [--profile]

The last line printed is one JSON object. docs/results/README.md says what is compared, and how fairly.
"""

import argparse
import atexit
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import side_by_side
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torchtitan_peer import torchtitan_step

from gpt.errors import ConfigError, import_extra
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

AXES = ("tensor", "pipeline", "data")
LAYOUTS = {"one": {}, **{f"{axis} 2": {axis: 2} for axis in AXES}}
PEER = "torchtitan "
WARM_UP_STEPS = 2
SEED = 1234
KINDS = {  # what a profile's kernels are counted as, by how their names begin
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "communication": ("gloo:", "c10d::", "_c10d_functional::"),
    "optimizer": ("aten::_fused_adamw",),
}


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    compile: bool

    @property
    def sequences(self) -> int:
        return self.batch.global_batch_tokens // self.model.n_ctx


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    setting = read_setting(args)
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args.serve, setting, profiled=args.profile))
        return None
    if setting.compile:
        side_by_side.need_compiler()
    if not args.no_peer:
        import_extra("torchtitan", extra="benchmarks")
    return compare(setting, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layers", type=int, default=4)
    parser.add_argument("--n-heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences in one forward pass")
    parser.add_argument("--sequences", type=int, default=16, help="sequences in a step, over all ranks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile blocks, ours and the peer's")
    parser.add_argument("--no-peer", action="store_true", help="leave torchtitan out")
    parser.add_argument(
        "--profile", action="store_true", help="say where rank 0's time goes, in one step before the rest"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def read_setting(args: argparse.Namespace) -> Setting:
    for name in ("micro_batch", "sequences", "rounds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    if args.json is not None and args.serve is None:
        side_by_side.check_writable(args.json)
    width = 256 * -(-int(8 * args.d_model / 3) // 256)  # of the gated layer, as torchtitan rounds it
    model = ModelConfig(
        vocab_size=args.vocab,
        n_ctx=args.context,
        n_layers=args.n_layers,
        d_model=args.d_model,
        n_heads=args.n_heads,
        d_ff=width,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=False,
    )
    batch = BatchConfig(args.micro_batch, args.sequences * args.context)
    setting = Setting(model, batch, OptimizerConfig(learning_rate=6e-4), args.compile)
    for name, sizes in LAYOUTS.items():  # a layout that cannot be is told before anything starts
        layout_of(setting, sizes, world_size=1 if name == "one" else 2)
    return setting


def layout_of(setting: Setting, sizes: dict[str, int], *, world_size: int) -> tuple[ParallelConfig, Any]:
    parallel = ParallelConfig(**sizes, precision="fp32", compile=setting.compile)
    n_ctx = setting.model.n_ctx
    return parallel, resolve_layout(parallel, setting.batch, model=setting.model, seq_len=n_ctx, world_size=world_size)


def compare(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders; the result as it is printed."""
    names = [*LAYOUTS, *([] if args.no_peer else [PEER + name for name in LAYOUTS if name != "one"])]
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=2, report=report)
    elapsed_s = {name: [answer[name]["elapsed_s"] for answer in answers] for name in names}
    paired = lambda a, b: statistics.median(y / x for x, y in zip(elapsed_s[a], elapsed_s[b], strict=True))  # noqa: E731
    layouts = [name for name in LAYOUTS if name != "one"]
    result = {
        "benchmark": "layouts",
        "parameters": setting.model.parameters,
        "model": {
            key: getattr(setting.model, key) for key in ("vocab_size", "d_model", "n_layers", "n_heads", "n_ctx")
        },
        "micro_batch_size": setting.batch.micro_batch_size,
        "global_batch_tokens": setting.batch.global_batch_tokens,
        "compile": setting.compile,
        "rounds": args.rounds,
        "step_s": {name: statistics.median(elapsed_s[name]) for name in names},
        "speed_of_one_process": {name: paired(name, "one") for name in layouts},
        "speed_of_torchtitan": {} if args.no_peer else {name: paired(name, PEER + name) for name in layouts},
        "profile": {name: answers[-1][name]["profile"] for name in names if "profile" in answers[-1][name]},
        "elapsed_s": elapsed_s,
        "machine": side_by_side.processor(),
        "versions": {name: version(name) for name in ("torch", *(() if args.no_peer else ("torchtitan",)))},
    }
    print_table(result)
    return result


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{'':22}{'step ms':>9}{'speed of one process':>22}{'speed of torchtitan':>22}")
    for name, step_s in result["step_s"].items():
        ratios = (result[key].get(name) for key in ("speed_of_one_process", "speed_of_torchtitan"))
        print(f"{name:22}{1000 * step_s:>9,.0f}" + "".join(f"{'' if r is None else f'{r:.3f}':>22}" for r in ratios))
    for name, shares in result["profile"].items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()) + " of rank 0's step")
    print()


def timed_block(name: str, setting: Setting, *, profiled: bool) -> Callable[[], dict[str, Any]]:
    """Start a contender's ranks and warm them up; a function that does one step on all of them."""
    world_size = 1 if name == "one" else 2
    folder = Path(tempfile.mkdtemp(prefix="triaxial_layouts_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = folder / "store"
    if world_size > 1:
        multiprocessing.get_context("spawn").Process(
            target=follow, args=(name, setting, str(store)), daemon=True
        ).start()
    step = build(name, setting, store, rank=0, world_size=world_size)
    go = torch.ones(1)

    def one_step() -> None:
        dist.broadcast(go, src=0)
        step()
        dist.barrier()

    for _ in range(WARM_UP_STEPS):
        one_step()
    found = {}
    if profiled:
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            started_at = time.perf_counter()
            one_step()
            elapsed_s = time.perf_counter() - started_at
        found["profile"] = shares(recorded, elapsed_s)

    def block() -> dict[str, Any]:
        one_step()
        return found

    return block


def follow(name: str, setting: Setting, store: str) -> None:
    """Rank 1: a step whenever rank 0 takes one, until that is gone."""
    os.dup2(2, 1)
    step = build(name, setting, Path(store), rank=1, world_size=2)
    while True:
        dist.broadcast(torch.ones(1), src=0)
        step()
        dist.barrier()


def build(name: str, setting: Setting, store: Path, *, rank: int, world_size: int) -> Callable[[], None]:
    """A function that does the next step of a contender on this rank."""
    torch.set_num_threads(2 // world_size)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), world_size), rank=rank, world_size=world_size)
    sizes = LAYOUTS[name.removeprefix(PEER)]
    if name.startswith(PEER):
        whole = {axis: sizes.get(axis, 1) for axis in AXES}
        train = torchtitan_step(
            setting.model,
            setting.optimizer,
            whole,
            batch=setting.batch,
            compile=setting.compile,
        )
    else:
        train = our_step(setting, sizes, world_size)
    data = sizes.get("data", 1)
    done = 0

    def step() -> None:
        nonlocal done
        train(share_of_step(setting, done, rank=rank if data > 1 else 0, data=data))
        done += 1

    return step


def our_step(setting: Setting, sizes: dict[str, int], world_size: int) -> Callable[[Batch], None]:
    """The engine that `triaxial train` builds, and what its loop calls for a step."""
    parallel, layout = layout_of(setting, sizes, world_size=world_size)
    settings = EngineSettings(
        model=setting.model,
        parallel=parallel,
        layout=layout,
        optimizer=setting.optimizer,
        micro_batch_size=setting.batch.micro_batch_size,
        seed=SEED,
    )
    engine = NativeEngine(settings, objective=NextToken(), device=torch.device("cpu"))

    def step(batch: Batch) -> None:
        engine.forward_backward(batch)
        engine.optimizer_step(setting.optimizer.learning_rate)

    return step


def share_of_step(setting: Setting, step: int, *, rank: int, data: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    shape = (setting.sequences, setting.model.n_ctx + 1)
    mine = torch.randint(0, setting.model.vocab_size, shape, generator=generator).chunk(data)[rank]
    return Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous())


def shares(recorded: profile, elapsed_s: float) -> dict[str, float]:
    """What rank 0's main thread spends a step on: operators by kind, and the rest of the clock's time, in which it runs
    Python and waits for messages that no operator waits for."""
    spans = dict.fromkeys((*KINDS, "other operators"), 0.0)
    for event in recorded.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other operators")
        spans[kind] += event.self_cpu_time_total / 1e6
    spans["Python and waiting"] = max(0.0, elapsed_s - sum(spans.values()))
    whole = sum(spans.values())
    return {kind: span / whole for kind, span in spans.items()}


if __name__ == "__main__":
    sys.exit(main())
