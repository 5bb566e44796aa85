"""Step time of each engine on the same layouts and model, alternating in one run, on two one-thread processes.

    python benchmarks/engines.py [--json FILE] [--rounds N] [--engines native,deepspeed] [--layouts "data 2, zero 1"]

A layout is measured on every engine that takes it. "tensor 2" is without sequence parallelism, which Megatron-core
has only with Transformer Engine; "tensor 2, sequence parallel" is ours alone. `cpu ms` is the processor time of rank
0, which other programs on the machine disturb less than the clock's time. The last line printed is one JSON object.
On a CPU, Megatron-core is left out, since it runs on CUDA only; `--megatron-on-cpu` measures it with its CUDA calls
answered as in the tests.
"""

import argparse
import atexit
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import side_by_side
import torch
import torch.distributed as dist

from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.capabilities import capabilities_of, check_engine, check_engine_device, check_installed
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, EngineName, ParallelConfig
from parallel.layout.layout import Layout, resolve_layout

RANKS = 2
LAYOUTS = {
    **{f"data 2, zero {stage}": {"data": 2, "zero_stage": stage} for stage in (0, 1, 2, 3)},
    "tensor 2": {"tensor": 2, "sequence_parallel": False},
    "tensor 2, sequence parallel": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
}
WARM_UP_STEPS = 4  # page faults end after the third step
SEED = 1234


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig

    @property
    def sequences(self) -> int:
        return self.batch.global_batch_tokens // self.model.n_ctx


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", help="names with commas (default: all that this machine can run)")
    parser.add_argument("--layouts", help=f"names with semicolons (default: all of {'; '.join(LAYOUTS)})")
    parser.add_argument("--megatron-on-cpu", action="store_true", help="needs tests/ of a checkout")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layers", type=int, default=4)
    parser.add_argument("--n-heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences in one forward pass")
    parser.add_argument("--sequences", type=int, default=16, help="sequences in a step, over all ranks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def answer_cuda_calls(*, everywhere: bool) -> None:
    """Let Megatron-core run on the CPU, as tests/parallel/megatron_on_cpu.py does. Else only allow it as a choice."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/parallel"))
    import megatron_on_cpu

    (megatron_on_cpu.install if everywhere else megatron_on_cpu.allow)()


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    setting = read_setting(args)
    if args.megatron_on_cpu and args.serve is None:
        answer_cuda_calls(everywhere=False)
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args.serve, setting))
        return None
    contenders = {}
    for engine in chosen_engines(args.engines):
        for name in LAYOUTS if args.layouts is None else [word.strip() for word in args.layouts.split(";")]:
            if name not in LAYOUTS:
                raise ConfigError(f"--layouts: '{name}' is unknown. Use some of {'; '.join(LAYOUTS)}")
            try:
                layout_of(setting, engine, name)
            except ConfigError as error:
                print(f"{engine}, {name}: left out: {error}", flush=True)
                continue
            contenders[f"{engine}: {name}"] = (engine, name)
    return compare(setting, contenders, args)


def chosen_engines(text: str | None) -> list[str]:
    """The engines named, or all that this machine can run."""
    if text is not None:
        return [word.strip() for word in text.split(",")]
    found = []
    for engine in get_args(EngineName):
        try:
            check_installed(engine)
            check_engine_device(ParallelConfig(engine=engine), "cpu")
        except ConfigError as error:
            print(f"{engine}: left out: {error}", flush=True)
        else:
            found.append(engine)
    return found


def read_setting(args: argparse.Namespace) -> Setting:
    if args.json is not None and args.serve is None:
        side_by_side.check_writable(args.json)
    model = ModelConfig(args.vocab, args.context, args.n_layers, args.d_model, args.n_heads)
    batch = BatchConfig(args.micro_batch, args.sequences * args.context)
    return Setting(model, batch, OptimizerConfig(learning_rate=6e-4))


def layout_of(setting: Setting, engine: str, name: str) -> tuple[ParallelConfig, Layout]:
    """ConfigError if the engine does not take the layout."""
    parallel = replace(ParallelConfig(precision="fp32", **LAYOUTS[name]), engine=engine)
    check_engine(parallel, model=setting.model, optimizer=setting.optimizer)
    check_engine_device(parallel, "cpu")
    if engine == "megatron" and parallel.tensor > 1 and parallel.sequence_parallel:
        raise ConfigError("sequence parallelism of Megatron-core needs Transformer Engine, which runs on CUDA only")
    n_ctx = setting.model.n_ctx
    return parallel, resolve_layout(parallel, setting.batch, model=setting.model, seq_len=n_ctx, world_size=RANKS)


def compare(setting: Setting, contenders: dict[str, tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders; the result as it is printed."""
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in contenders}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=RANKS, report=report)
    elapsed_s = {name: [answer[name]["elapsed_s"] for answer in answers] for name in contenders}
    cpu_s = {name: [answer[name]["cpu_s"] for answer in answers] for name in contenders}
    packages = {"torch", *(p for e, _ in contenders.values() if (p := capabilities_of(e).package) is not None)}
    result = {
        "benchmark": "engines",
        "parameters": setting.model.parameters,
        "micro_batch_size": setting.batch.micro_batch_size,
        "global_batch_tokens": setting.batch.global_batch_tokens,
        "rounds": args.rounds,
        "step_s": {name: statistics.median(spans) for name, spans in elapsed_s.items()},
        "our_speed": ratios(contenders, elapsed_s),
        "cpu_s": {name: statistics.median(spans) for name, spans in cpu_s.items()},
        "cpu_ratio": ratios(contenders, cpu_s),
        "elapsed_s": elapsed_s,
        "machine": side_by_side.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in sorted(packages)},
    }
    print_table(result)
    return result


def ratios(contenders: dict[str, tuple[str, str]], spans_s: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """For each contender of another engine, its time over ours on the same layout, round by round."""
    ours, found = ParallelConfig().engine, {}
    for name, (engine, layout) in contenders.items():
        same = f"{ours}: {layout}"
        if engine != ours and same in contenders:
            paired = [theirs / mine for mine, theirs in zip(spans_s[same], spans_s[name], strict=True)]
            found[name] = {"median": statistics.median(paired), "least": min(paired), "largest": max(paired)}
    return found


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{result['machine']}, {result['instructions']}, load {result['load']:.1f}")
    headings = ("step ms", "our speed", "rounds", "cpu ms", "theirs / ours")
    print(f"{'':34}{headings[0]:>9}{headings[1]:>12}{headings[2]:>16}{headings[3]:>9}{headings[4]:>15}")
    for name, step_s in result["step_s"].items():
        speed, cpu = result["our_speed"].get(name), result["cpu_ratio"].get(name)
        median = spread = share = ""
        if speed is not None:
            median, spread = f"{speed['median']:.3f}", f"{speed['least']:.2f} to {speed['largest']:.2f}"
            share = f"{cpu['median']:.3f}"
        cpu_ms = 1000 * result["cpu_s"][name]
        print(f"{name:34}{1000 * step_s:>9,.0f}{median:>12}{spread:>16}{cpu_ms:>9,.0f}{share:>15}")
    print()


def timed_block(name: str, setting: Setting) -> Callable[[], dict[str, Any]]:
    """Start a contender's ranks and warm them up; a function that does one step on all of them."""
    folder = Path(tempfile.mkdtemp(prefix="triaxial_engines_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = str(folder / "store")
    multiprocessing.get_context("spawn").Process(target=follow, args=(name, setting, store), daemon=True).start()
    step = build(name, setting, store, rank=0)
    go = torch.ones(1)

    def one_step() -> None:
        dist.broadcast(go, src=0)
        step()
        dist.barrier()

    for _ in range(WARM_UP_STEPS):
        one_step()

    def block() -> dict[str, Any]:
        one_step()
        return {}

    return block


def follow(name: str, setting: Setting, store: str) -> None:
    """Rank 1: a step whenever rank 0 takes one, until that is gone."""
    os.dup2(2, 1)
    step = build(name, setting, store, rank=1)
    while True:
        dist.broadcast(torch.ones(1), src=0)
        step()
        dist.barrier()


def build(name: str, setting: Setting, store: str, *, rank: int) -> Callable[[], None]:
    """A function that does the next step of a contender on this rank, as the training loop does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    engine_name, layout_name = name.split(": ", 1)
    if engine_name == "megatron" and "--megatron-on-cpu" in sys.argv:
        answer_cuda_calls(everywhere=True)
    parallel, layout = layout_of(setting, engine_name, layout_name)
    settings = EngineSettings(
        model=setting.model,
        parallel=parallel,
        layout=layout,
        optimizer=setting.optimizer,
        micro_batch_size=setting.batch.micro_batch_size,
        seed=SEED,
    )
    engine = build_engine(settings, objective=NextToken(), device=torch.device("cpu"))
    done = 0

    def step() -> None:
        nonlocal done
        generator = torch.Generator().manual_seed(done)
        shape = (setting.sequences, setting.model.n_ctx + 1)
        tokens = torch.randint(0, setting.model.vocab_size, shape, generator=generator)
        mine = tokens.chunk(engine.data_size)[engine.data_rank]
        engine.forward_backward(Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous()))
        engine.optimizer_step(setting.optimizer.learning_rate)
        done += 1

    return step


if __name__ == "__main__":
    sys.exit(main())
