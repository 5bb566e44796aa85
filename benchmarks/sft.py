"""Tokens/s of supervised fine-tuning beside TRL's SFTTrainer, on the CPU, alternating in one run.

    python benchmarks/sft.py [--layers 30] [--rounds 5] [--steps 2] [--precision bf16] [--compile] [--json FILE]

The model has the shape of SmolLM2-135M, with random weights, equal for all. Conversations have random tokens, lengths
from a log-normal distribution, and answers of three fifths of their tokens. Counted are real tokens, not padding.
TRL runs twice: as by default, padded to the longest of a batch, and with `packing=True`, which joins the rows of a
forward pass to one. Ours is one row of as many tokens. TRL does not recompute activations here, though it would by
default.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
import torch
import torch.distributed as dist
from sft_peer import Conversation, trl_block
from torch._C._distributed_c10d import HashStore

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.model.config import ModelConfig
from gpt.post_training.sft import SFT
from gpt.token_files.files import TokenFileWriter
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

OURS, PADDED, PACKED = "triaxial", "trl", "trl_packed"
SEED, LEARNING_RATE = 1234, 2e-5
MEDIAN_TOKENS, SIGMA, MIN_TOKENS, LEARNED_SHARE = 110, 0.6, 8, 0.6
CONVERSATIONS = 2000


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--seq-len", type=int, default=512, help="longest conversation, and size of TRL's packed rows")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a forward pass")
    parser.add_argument("--micro-batches", type=int, default=2, help="forward passes of a step")
    parser.add_argument("--steps", type=int, default=2, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="compile our blocks; TRL runs uncompiled in any case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", choices=[OURS, PADDED, PACKED], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args))
        return None
    names = [OURS, PADDED, PACKED]
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    report = lambda text: print(text, flush=True)  # noqa: E731
    load = Path("/proc/loadavg").read_text().split()[0]
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=args.threads, report=report)
    per_token_s, per_token_cpu_s = (
        {name: [a[name][span] / a[name]["tokens"] for a in answers] for name in names}
        for span in ("train_s", "train_cpu_s")
    )
    result = {
        "benchmark": "sft",
        "parameters": model_config(args).parameters,
        "settings": {key: value for key, value in vars(args).items() if key not in ("json", "serve")},
        "tokens_per_s": {name: 1 / statistics.median(spans) for name, spans in per_token_s.items()},
        "ratios": side_by_side.speed_ratios(per_token_s, OURS),
        "cpu_ratios": side_by_side.speed_ratios(per_token_cpu_s, OURS),
        "tokens_of_a_block": {name: [a[name]["tokens"] for a in answers] for name in names},
        "first_losses": {name: answers[0][name]["first_loss"] for name in names},
        "peak_memory_bytes": {name: answers[-1][name]["peak_memory_bytes"] for name in names},
        "machine": side_by_side.processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "load_before": float(load),
        "load_after": float(Path("/proc/loadavg").read_text().split()[0]),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
    }
    print_table(result)
    return result


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{'':14}{'tokens/s':>10}{'ours/peer':>11}{'paired':>20}{'peak MB':>9}")
    for name, tokens_per_s in result["tokens_per_s"].items():
        ratio, figures = result["ratios"].get(name), f"{'':31}"
        if ratio is not None:
            paired = f"{ratio['paired_median']:.2f} ({ratio['paired_min']:.2f}-{ratio['paired_max']:.2f})"
            figures = f"{ratio['of_medians']:>11.2f}{paired:>20}"
        print(f"{name:14}{tokens_per_s:>10,.0f}{figures}{result['peak_memory_bytes'][name] / 1e6:>9,.0f}")
    print()


def model_config(args: argparse.Namespace) -> ModelConfig:
    """SmolLM2-135M's shape."""
    return ModelConfig(
        vocab_size=49152,
        n_ctx=8192,
        n_layers=args.layers,
        d_model=576,
        n_heads=9,
        n_kv_heads=3,
        d_ff=1536,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        rope_theta=100_000.0,
    )


def conversations(args: argparse.Namespace) -> list[Conversation]:
    draw = np.random.default_rng(SEED)
    lengths = np.exp(draw.normal(np.log(MEDIAN_TOKENS), SIGMA, CONVERSATIONS)).astype(int)
    found = []
    for length in np.clip(lengths, MIN_TOKENS, args.seq_len).tolist():
        prompt = round(length * (1 - LEARNED_SHARE))
        found.append((draw.integers(2, 49152, length).tolist(), [0] * prompt + [1] * (length - prompt)))
    return found


def timed_block(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Build a contender and warm it up; a function that does the next block of steps."""
    torch.set_num_threads(args.threads)
    block = our_block(args) if args.serve == OURS else their_block(args)
    first_loss = block()["loss"]  # of the same weights; later blocks of TRL read the same conversations again
    return lambda: {**block(), "first_loss": first_loss}


def their_block(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """TRL: packed rows like ours, or as many conversations as fill those on average."""
    packing = args.serve == PACKED
    of_row = args.seq_len / float(np.mean([len(ids) for ids, _ in conversations(args)]))
    return trl_block(
        model_config(args),
        conversations(args),
        packing=packing,
        max_length=args.seq_len,
        rows=args.rows if packing else round(args.rows * of_row),
        micro_batches=args.micro_batches,
        steps=args.steps,
        learning_rate=LEARNING_RATE,
        precision=args.precision,
        seed=SEED,
    )


def our_block(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """The engine, the data and the objective that `triaxial train` builds for one process."""
    model, objective = model_config(args), SFT()
    parallel = ParallelConfig(precision=args.precision, compile=args.compile)
    seq_len = args.rows * args.seq_len  # attention stays inside conversations, so a long row costs no more
    batch = BatchConfig(1, args.micro_batches * seq_len)
    layout = resolve_layout(parallel, batch, model=model, seq_len=seq_len, world_size=1)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    engine = NativeEngine(
        EngineSettings(model, parallel, layout, OptimizerConfig(learning_rate=LEARNING_RATE), 1, SEED),
        objective=objective,
        device=torch.device("cpu"),
    )
    data, step, n_rows = training_data(args, seq_len), 0, args.micro_batches

    def take_step() -> tuple[int, float]:
        """The real tokens of the next step, and its loss."""
        nonlocal step
        samples = data.read(np.arange(step * n_rows, (step + 1) * n_rows))
        engine.forward_backward(objective.batch(samples))
        loss = engine.optimizer_step(LEARNING_RATE).loss.mean
        step += 1
        assert samples.segment_ids is not None
        return int((samples.segment_ids >= 0).sum()), loss

    def block() -> dict[str, Any]:
        _, first = take_step()  # as the peer's first step, whose time does not count
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        tokens, losses = zip(*(take_step() for _ in range(args.steps)), strict=True)
        train_s, train_cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_started_at
        loss = statistics.mean([first, *losses])
        return {"train_s": train_s, "train_cpu_s": train_cpu_s, "tokens": sum(tokens), "loss": loss}

    return block


def training_data(args: argparse.Namespace, seq_len: int) -> TrainingData:
    """The conversations as token files."""
    folder = Path(tempfile.mkdtemp())
    with (
        TokenFileWriter(folder / "train", vocab_size=49152) as tokens,
        TokenFileWriter(folder / "learned", vocab_size=2) as marks,
    ):
        for ids, learned in conversations(args):
            tokens.add_document(ids)
            marks.add_document(learned)
    corpus = CorpusConfig(str(folder / "train"), streams={"learned": str(folder / "learned")})
    config = DataConfig(tokenizer="none", train=(corpus,), seq_len=seq_len, sampling="packed")
    return TrainingData(config, seed=SEED, vocab_size=49152)


if __name__ == "__main__":
    sys.exit(main())
