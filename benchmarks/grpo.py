"""Episodes/s of GRPO beside TRL's GRPOTrainer, on the CPU, alternating in one run. (TRL 1.16 has no PPO.)

    python benchmarks/grpo.py [--layers 30] [--rounds 5] [--steps 1] [--precision bf16] [--json FILE]

The model has the shape of SmolLM2-135M, with random weights, equal for both. Prompts have random tokens. Random weights
hardly ever write the end token, so nearly every response has `--response-tokens` tokens; the counts are reported. With
`--varied`, both sides end the responses of a step at lengths from an eighth of it to all of it, evenly spread. A step
samples `--prompts` prompts with `--group` responses each, scores them by one Python function of texts, computes the
log-probabilities of policy and reference, and makes one update in micro-batches of `--micro-batch` responses. Both
sample with their own generation: neither uses vLLM.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sft
import side_by_side
import torch
import torch.distributed as dist
from grpo_peer import WordTokenizer, share_of_even, trl_step
from torch._C._distributed_c10d import HashStore

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from gpt.post_training.ppo.config import GRPOConfig, RewardSource
from gpt.post_training.ppo.models import PPOModels, PPOSetup
from gpt.post_training.ppo.rewards import FunctionReward
from gpt.post_training.ppo.sampling import RolloutSource
from gpt.post_training.ppo.scoring import score
from gpt.post_training.ppo.updates import update
from gpt.token_files.files import TokenFileWriter
from gpt.training.engine import Engine
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

OURS, PEER = "triaxial", "trl"
SEED, LEARNING_RATE, BETA, CLIP, VOCAB = 1234, 1e-6, 0.04, 0.2, 49152


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=2, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--response-tokens", type=int, default=96)
    parser.add_argument("--varied", action="store_true", help="end responses at lengths from 1/8 of the limit to all")
    parser.add_argument("--micro-batch", type=int, default=4, help="responses of a forward pass")
    parser.add_argument("--steps", type=int, default=1, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", choices=[OURS, PEER], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args))
        return None
    names = [OURS, PEER]
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    load = Path("/proc/loadavg").read_text().split()[0]
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=args.threads, report=report)
    spans = {
        key: {name: [a[name][key] / a[name]["episodes"] for a in answers] for name in names}
        for key in ("train_s", "train_cpu_s")
    }
    return {
        "benchmark": "grpo",
        "parameters": sft.model_config(args).parameters,
        "settings": {key: value for key, value in vars(args).items() if key not in ("json", "serve")},
        "episodes_per_s": {name: 1 / statistics.median(values) for name, values in spans["train_s"].items()},
        "cpu_s_per_episode": {name: statistics.median(values) for name, values in spans["train_cpu_s"].items()},
        "ratios": side_by_side.speed_ratios(spans["train_s"], OURS),
        "cpu_ratios": side_by_side.speed_ratios(spans["train_cpu_s"], OURS),
        "response_tokens_of_a_block": {name: [a[name]["tokens"] for a in answers] for name in names},
        "peak_memory_bytes": {name: answers[-1][name]["peak_memory_bytes"] for name in names},
        "machine": side_by_side.processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "load_before": float(load),
        "load_after": float(Path("/proc/loadavg").read_text().split()[0]),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }


def timed_block(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Build a contender and warm it up; a function that does the next block of steps."""
    torch.set_num_threads(args.threads)
    if args.serve == OURS:
        return our_block(args)
    return trl_step(
        sft.model_config(args),
        prompts(args),
        group=args.group,
        prompts_of_step=args.prompts,
        response_tokens=args.response_tokens,
        micro_batch=args.micro_batch,
        steps=args.steps,
        beta=BETA,
        clip=CLIP,
        learning_rate=LEARNING_RATE,
        precision=args.precision,
        seed=SEED,
        given_lengths=lengths(args),
    )


def lengths(args: argparse.Namespace) -> list[int]:
    """The lengths of the responses of a step, in a random order; none unless they are varied."""
    if not args.varied:
        return []
    spread = np.linspace(args.response_tokens / 8, args.response_tokens, args.prompts * args.group)
    return np.random.default_rng(SEED).permutation(spread.round().astype(int)).tolist()


@dataclass(frozen=True)
class GivenLengths(RolloutSource):
    """Rollouts whose responses have given lengths, unless they end earlier."""

    left: Iterator[int]

    def room(self, prompt: list[int]) -> int:
        return next(self.left)


def prompts(args: argparse.Namespace) -> list[list[int]]:
    draw = np.random.default_rng(SEED)
    return [draw.integers(2, VOCAB, args.prompt_tokens).tolist() for _ in range(256)]


def our_block(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The parts of `PPOLoop.iterate` without logging and checkpoints, which the peer does not do here either."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    episodes = args.prompts * args.group
    kind = GRPOConfig(
        group_size=args.group,
        minibatch_episodes=episodes,
        beta=BETA,
        clip_low=CLIP,
        clip_high=CLIP,
        rewards=(RewardSource(function="benchmark:share_of_even"),),
        max_response_tokens=args.response_tokens,
        rollout_rows=episodes,
        rollout_part=episodes,
    )
    tokenizer: Any = WordTokenizer()
    models = PPOModels(
        policy=engine(args, kind, trains=True),
        reference=engine(args, kind, trains=False),
        value=None,
        ema=None,
        rewards=[FunctionReward("even", share_of_even, tokenizer)],
        gold=[],
    )
    setup = make_setup(args, kind, tokenizer)
    step = 0

    def take_step() -> int:
        nonlocal step
        step += 1
        source = RolloutSource(setup, models.policy)
        if args.varied:
            source = GivenLengths(setup, models.policy, iter(lengths(args)))
        quiet = {"stop": lambda: False, "beat": lambda: None}
        source.sample(step, SkippedData.stated(()), version=step - 1, **quiet)
        found = source.read(step).trimmed(setup.trim_to)
        experience = score(found, setup, models, beta=0.0, beat=quiet["beat"])
        update(experience, setup, models, step=step, lr=LEARNING_RATE, value_lr=0.0, beat=quiet["beat"])
        source.discard(step)
        return int(found.response_tokens.sum())

    def block() -> dict[str, Any]:
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        tokens = sum(take_step() for _ in range(args.steps))
        spans = {"train_s": time.perf_counter() - started_at, "train_cpu_s": time.process_time() - cpu_started_at}
        return {**spans, "episodes": args.steps * episodes, "tokens": tokens}

    take_step()
    return block


def engine(args: argparse.Namespace, kind: GRPOConfig, *, trains: bool) -> Engine:
    model, seq_len = sft.model_config(args), args.prompt_tokens + args.response_tokens
    parallel = ParallelConfig(precision=args.precision)
    batch = BatchConfig(args.micro_batch, args.prompts * args.group * seq_len)
    layout = resolve_layout(parallel, batch, model=model, seq_len=seq_len, world_size=1)
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE) if trains else None
    settings = EngineSettings(model, parallel, layout, optimizer, args.micro_batch, SEED)
    return NativeEngine(settings, objective=kind.build(z_loss=0.0), device=torch.device("cpu"))


def make_setup(args: argparse.Namespace, kind: GRPOConfig, tokenizer: Any) -> PPOSetup:
    folder, seq_len = Path(tempfile.mkdtemp()), args.prompt_tokens + args.response_tokens
    with TokenFileWriter(folder / "prompts", vocab_size=VOCAB) as writer:
        for ids in prompts(args):
            writer.add_document(np.array(ids))
    corpus = CorpusConfig(str(folder / "prompts"))
    data = DataConfig(tokenizer="none", train=(corpus,), seq_len=seq_len, sampling="document")
    return PPOSetup(
        config=kind.loop,
        prompts=TrainingData(data, seed=SEED, vocab_size=VOCAB),
        ptx=None,
        tokenizer=tokenizer,
        end_ids=(0,),
        rollouts=folder / "rollouts",
        episodes=args.prompts * args.group,
        seq_len=seq_len,
        seed=SEED,
        writes=True,
        sampled_by="benchmark",
        group=kind,
        trim_to=16,
    )


if __name__ == "__main__":
    sys.exit(main())
