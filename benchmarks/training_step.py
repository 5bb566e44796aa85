"""Training tokens/s of `triaxial train`'s step beside two peers, on the CPU, alternating in one run.

    python benchmarks/training_step.py [--json FILE] [--rounds N] [--vocab 8192 --d-model 512 --n-layers 8 --n-heads 8]

The last line printed is one JSON object. docs/results/README.md says what is compared, and how fairly.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import side_by_side
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from training_peers import nano_gpt, transformers_gpt2

from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

Step = Callable[[Batch], float]

OURS = "triaxial"
PEERS = {"transformers": transformers_gpt2, "plain": nano_gpt}
WARM_UP_STEPS = 2  # the first compiles
SEED = 1234
LARGEST_LOSS_DIFFERENCE = 0.02  # nats; bf16 rounds each contender's sums apart, another model or update differs by more


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    threads: int
    steps_per_block: int

    @property
    def seqs(self) -> int:
        return self.batch.global_batch_tokens // self.model.n_ctx


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    setting = read_setting(args)
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args.serve, setting))
        return None
    side_by_side.need_compiler()
    return compare(setting, args.rounds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50_257)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--n-layers", type=int, default=6)
    parser.add_argument("--n-heads", type=int, default=6)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences in one forward pass")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches in a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-block", type=int, default=1, help="steps that are timed together")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", choices=[OURS, *PEERS], help=argparse.SUPPRESS)
    return parser.parse_args()


def read_setting(args: argparse.Namespace) -> Setting:
    for name in ("micro_batch", "accumulation", "threads", "rounds", "steps_per_block"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    if args.json is not None and args.serve is None:
        side_by_side.check_writable(args.json)
    return Setting(
        model=ModelConfig(
            vocab_size=args.vocab,
            n_ctx=args.context,
            n_layers=args.n_layers,
            d_model=args.d_model,
            n_heads=args.n_heads,
        ),
        batch=BatchConfig(args.micro_batch, args.micro_batch * args.accumulation * args.context),
        optimizer=OptimizerConfig(learning_rate=6e-4),
        threads=args.threads,
        steps_per_block=args.steps_per_block,
    )


def compare(setting: Setting, rounds: int) -> dict[str, Any]:
    """Run all contenders; the result as it is printed. ConfigError when their losses say that they differ in more
    than speed."""
    names = [OURS, *PEERS]
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=rounds, threads=setting.threads, report=report)
    elapsed_s, cpu_s = (
        {name: [answer[name][span] for answer in answers] for name in names} for span in ("elapsed_s", "cpu_s")
    )
    block_tokens = setting.batch.global_batch_tokens * setting.steps_per_block
    losses = {name: [loss for answer in answers for loss in answer[name]["losses"]] for name in names}
    apart = max(abs(a - b) for name in PEERS for a, b in zip(losses[OURS], losses[name], strict=True))
    result = {
        "benchmark": "training_step",
        "model": describe_model(setting.model),
        "micro_batch_size": setting.batch.micro_batch_size,
        "global_batch_tokens": setting.batch.global_batch_tokens,
        "threads": setting.threads,
        "rounds": rounds,
        "steps_per_block": setting.steps_per_block,
        "tokens_per_s": {name: block_tokens / statistics.median(elapsed_s[name]) for name in names},
        "ratios": side_by_side.speed_ratios(elapsed_s, OURS),
        "cpu_ratios": side_by_side.speed_ratios(cpu_s, OURS),
        "losses": {name: [losses[name][i] for i in (0, -1)] for name in names},
        "largest_loss_difference_nats": apart,
        "peak_memory_bytes": {name: answers[-1][name]["peak_memory_bytes"] for name in names},
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_s,
        "machine": side_by_side.processor(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print_table(result)
    padded = math.log(setting.model.padded_vocab_size / setting.model.vocab_size)  # the plain model may predict padding
    allowed = LARGEST_LOSS_DIFFERENCE + padded
    if not apart <= allowed:
        raise ConfigError(
            f"the losses differ by up to {apart:.4f} nats at the same step, more than rounding explains "
            f"({allowed:.4f}): the contenders do not do the same work"
        )
    return result


def describe_model(model: ModelConfig) -> dict[str, int]:
    return {
        "parameters": model.parameters,
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_ctx": model.n_ctx,
    }


def print_table(result: dict[str, Any]) -> None:
    first = WARM_UP_STEPS + 1
    last = WARM_UP_STEPS + result["rounds"] * result["steps_per_block"]
    print(f"\n{'':14}{'tokens/s':>10}{'ours/peer':>11}{'paired':>20}{'peak MB':>9}  loss at step {first} and {last}")
    for name, tokens_per_s in result["tokens_per_s"].items():
        ratio = result["ratios"].get(name)
        figures = f"{'':11}{'':20}"
        if ratio is not None:
            paired = f"{ratio['paired_median']:.3f} ({ratio['paired_min']:.3f}-{ratio['paired_max']:.3f})"
            figures = f"{ratio['of_medians']:>11.3f}{paired:>20}"
        memory = result["peak_memory_bytes"][name] / 1e6
        begin, end = result["losses"][name]
        print(f"{name:14}{tokens_per_s:>10,.0f}{figures}{memory:>9,.0f}  {begin:.4f} {end:.4f}")
    print()


def timed_block(name: str, setting: Setting) -> Callable[[], dict[str, Any]]:
    """Build a contender and warm it up; a function that does the next block of steps."""
    torch.set_num_threads(setting.threads)
    if name == OURS:
        step = our_step(setting)
    else:
        step = PEERS[name](setting.model, setting.optimizer, micro_batch_size=setting.batch.micro_batch_size, seed=SEED)
    batches = [batch_of_step(setting, i) for i in range(WARM_UP_STEPS)]
    for batch in batches:
        step(batch)
    done = WARM_UP_STEPS

    def block() -> dict[str, Any]:
        nonlocal done
        losses = []
        for _ in range(setting.steps_per_block):
            losses.append(step(batch_of_step(setting, done)))
            done += 1
        return {"losses": losses}

    return block


def our_step(setting: Setting) -> Step:
    """The engine that `triaxial train` builds for one process, and what its loop calls for a step."""
    parallel = ParallelConfig(precision="bf16", compile=True)
    layout = resolve_layout(parallel, setting.batch, model=setting.model, seq_len=setting.model.n_ctx, world_size=1)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    engine = NativeEngine(
        EngineSettings(
            model=setting.model,
            parallel=parallel,
            layout=layout,
            optimizer=setting.optimizer,
            micro_batch_size=setting.batch.micro_batch_size,
            seed=SEED,
        ),
        objective=NextToken(),
        device=torch.device("cpu"),
    )

    def step(batch: Batch) -> float:
        engine.forward_backward(batch)
        return engine.optimizer_step(setting.optimizer.learning_rate).loss.mean

    return step


def batch_of_step(setting: Setting, step: int) -> Batch:
    """Tokens drawn by Zipf's law, as words are: some rows of the embedding are met often, most hardly ever, and there
    is something to learn, so that a step which learns wrongly shows in the loss."""
    generator = torch.Generator().manual_seed(step)
    weights = 1.0 / torch.arange(1, setting.model.vocab_size + 1)
    shape = (setting.seqs, setting.model.n_ctx + 1)
    tokens = torch.multinomial(weights, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


if __name__ == "__main__":
    sys.exit(main())
