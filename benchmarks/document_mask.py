"""Training speed with `data.document_mask` against the same run without it, alternating in one process.

    python benchmarks/document_mask.py [--rounds N] [--steps N] [--threads N] [--precision bf16] [--compile]

Documents have the lengths of a real corpus if `--corpus PREFIX` names token files; otherwise they are drawn from a
log-normal distribution with the spread of web pages and the median --median. The last line printed is one JSON
object with the median time of a step without the mask, and the ratio of the two speeds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from gpt.data.sampling import Samples
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.token_files.files import TokenFile
from gpt.training.engine import Engine
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout


def lengths_of(prefix: Path | None, n_tokens: int, *, median: int) -> np.ndarray:
    """Document lengths that reach `n_tokens` tokens in all."""
    if prefix is not None:
        file = TokenFile(prefix)
        starts = [file.document_start(i) for i in range(min(file.n_documents, n_tokens) + 1)]
        return np.resize(np.diff(starts), n_tokens)
    draw = np.random.default_rng(0)
    return np.maximum(2, draw.lognormal(mean=np.log(median), sigma=1.1, size=4 * n_tokens // median)).astype(np.int64)


def batches(args: argparse.Namespace, *, masked: bool) -> list[Batch]:
    """The same tokens with and without the borders of documents."""
    draw = np.random.default_rng(1)
    shape = (args.micro_batch * args.micro_batches, args.seq_len + 1)
    size = shape[0] * shape[1]
    found = []
    borders = np.cumsum(lengths_of(args.corpus, size * args.steps, median=args.median))
    for step in range(args.steps):
        tokens = draw.integers(0, args.vocab, shape)
        ids = np.searchsorted(borders, np.arange(step * size, (step + 1) * size), side="right").reshape(shape)
        found.append(NextToken().batch(Samples(tokens, ids if masked else None)))
    return found


def step_times(engine: Engine, work: list[Batch]) -> list[float]:
    times = []
    for batch in work:
        started_at = time.perf_counter()
        engine.forward_backward(batch)
        engine.optimizer_step(1e-4)
        times.append(time.perf_counter() - started_at)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each kind in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--median", type=int, default=400, help="tokens of a document, without --corpus")
    parser.add_argument("--corpus", type=Path, help="token files, without .bin or .idx, whose document lengths to use")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = ModelConfig(args.vocab, args.seq_len, args.layers, args.width, args.heads)
    parallel = ParallelConfig(precision=args.precision, compile=args.compile)
    batch = BatchConfig(args.micro_batch, args.micro_batch * args.micro_batches * args.seq_len)
    layout = resolve_layout(parallel, batch, model=model, seq_len=args.seq_len, world_size=1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    optimizer = OptimizerConfig(learning_rate=1e-4)
    settings = EngineSettings(model, parallel, layout, optimizer, args.micro_batch, seed=1)
    engine = build_engine(settings, objective=NextToken(), device=torch.device("cpu"))
    work = {masked: batches(args, masked=masked) for masked in (False, True)}
    for masked in (False, True):
        step_times(engine, work[masked][:2])  # compiles, and fills caches
    plain: list[float] = []
    ratios = []
    for _ in range(args.rounds):
        medians = {masked: statistics.median(step_times(engine, work[masked])) for masked in (False, True)}
        plain.append(medians[False])
        ratios.append(medians[False] / medians[True])
        print(f"without {medians[False]:.3f} s, with {medians[True]:.3f} s, speed {ratios[-1]:.3f}", file=sys.stderr)
    dist.destroy_process_group()
    found = {
        "step_s": statistics.median(plain),
        "speed_with_mask": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
