"""What looking after a run costs: the check of copies, the straggler report, determinism, z-loss; as shares of a step.

    python benchmarks/health_cost.py [--json FILE] [--rounds N] [--vocab 8192 --d-model 256 --n-layers 6 --n-heads 4]

Two data ranks on gloo that hold the same weights (ZeRO 0). In each round, in one process group: a plain step, our check
of copies, the peer's, a step that is measured for stragglers, a deterministic one, one with z-loss. The peer does as
Megatron-LM's --check-weight-hash-across-dp-replicas-interval: SHA-1 of each weight's bytes on the host, gathered; it
leaves the moments out, so ours is timed with and without them. The last line printed is one JSON object.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import side_by_side
import torch
import torch.distributed as dist

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from launch.processes.determinism import deterministic
from launch.processes.local_ranks import fork_server, run_ranks
from parallel.axes.gradients import local
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.health.replica_check import ReplicaCheck
from parallel.health.stragglers import Stragglers
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

RANKS = 2
CHECK_EVERY, STRAGGLER_EVERY = 100, 25
CPU = torch.device("cpu")


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocab", 8192), ("d-model", 256), ("n-layers", 6), ("n-heads", 4), ("context", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sequences", type=int, default=4, help="of each rank and step, one micro-batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times of all rounds on fresh ranks, and their ratios."""
    if args.json is not None:
        side_by_side.check_writable(args.json)
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings.json").write_text(json.dumps(settings))
        context = fork_server(["parallel.engines.native", "launch.processes.determinism"])
        run_ranks(context, time_rank, [folder], nproc=RANKS, logs=Path(folder, "logs"))
        spans = json.loads(Path(folder, "spans.json").read_text())
    return {
        "benchmark": "health_cost",
        **settings,
        "ranks": RANKS,
        "replica_check": {
            "share_of_training_at_100": median_ratio(spans, "check", "step") / CHECK_EVERY,
            "peer_share_of_training_at_100": median_ratio(spans, "peer_weights", "step") / CHECK_EVERY,
            "weights_alone_by_peer": median_ratio(spans, "check_weights", "peer_weights"),
        },
        "stragglers": {
            "measured_step_by_step": median_ratio(spans, "measured_step", "step"),
            "share_of_training_at_25": (median_ratio(spans, "measured_step", "step") - 1) / STRAGGLER_EVERY,
        },
        "deterministic_step_by_step": median_ratio(spans, "deterministic_step", "step"),
        "z_loss_step_by_step": median_ratio(spans, "z_loss_step", "step"),
        "spans_s": spans,
        "machine": side_by_side.processor(),
        "versions": {"torch": torch.__version__},
    }


def median_ratio(spans: dict[str, list[float]], ours: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(spans[ours], spans[other], strict=True))


def time_rank(rank: int, folder: str) -> None:
    """One rank; rank 0 leaves the seconds of each part and round in spans.json."""
    torch.set_num_threads(1)
    settings = json.loads(Path(folder, "settings.json").read_text())
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=600))
    parts = Parts(settings)
    by_name: dict[str, Callable[[], object]] = {
        "step": parts.step,
        "check": parts.check.compare,
        "check_weights": parts.check_weights.compare,
        "peer_weights": parts.peer_check,
        "measured_step": parts.measured_step,
        "deterministic_step": parts.deterministic_step,
        "z_loss_step": parts.z_loss_step,
    }
    spans: dict[str, list[float]] = {name: [] for name in by_name}
    for number in range(settings["rounds"] + 1):
        turn = number % len(by_name)
        names = list(by_name)
        for name in names[turn:] + names[:turn]:
            dist.barrier()
            started_at = time.perf_counter()
            by_name[name]()
            if number > 0:  # the first warms up
                spans[name].append(time.perf_counter() - started_at)
    if rank == 0:
        Path(folder, "spans.json").write_text(json.dumps(spans))
    dist.barrier()
    dist.destroy_process_group()


class Parts:
    """An engine, and what is timed of it."""

    def __init__(self, settings: dict[str, int]) -> None:
        context, sequences = settings["context"], settings["sequences"]
        model = ModelConfig(
            vocab_size=settings["vocab"],
            n_ctx=context,
            n_layers=settings["n_layers"],
            d_model=settings["d_model"],
            n_heads=settings["n_heads"],
        )
        batch = BatchConfig(sequences, sequences * context * RANKS)
        parallel = ParallelConfig(data=RANKS, zero_stage=0, precision="fp32")
        layout = resolve_layout(parallel, batch, model=model, seq_len=context, world_size=RANKS)
        self.losses = [NextToken(z_loss).loss(compile=False) for z_loss in (0.0, 1e-4)]
        optimizer = OptimizerConfig(learning_rate=6e-4)
        self.engine = NativeEngine(
            EngineSettings(model, parallel, layout, optimizer, sequences, seed=1234), objective=NextToken(), device=CPU
        )
        tokens = torch.randint(0, model.vocab_size, (sequences, context + 1))
        self.batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        self.stragglers = Stragglers(layout, CPU, every_steps=1)
        self.steps = 0
        moments = ("exp_avg", "exp_avg_sq")
        named = [
            (name, p, (p.data, *self.engine.optimizer.tensors_of(p).values())) for name, p in self.engine.parameters
        ]
        self.check = ReplicaCheck(named, kinds=("model.", *moments), device=CPU)
        weights = [(name, p, (p.data,)) for name, p in self.engine.parameters]
        self.check_weights = ReplicaCheck(weights, kinds=("model.",), device=CPU)

    def step(self) -> None:
        self.engine.forward_backward(self.batch)
        self.engine.optimizer_step(6e-4)

    def peer_check(self) -> None:
        hashes = [hashlib.sha1(local(p).detach().numpy().tobytes()).digest() for _, p in self.engine.parameters]
        mine = torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(RANKS)]
        dist.all_gather(everyone, mine)
        assert all(torch.equal(each, mine) for each in everyone)

    def measured_step(self) -> None:
        self.steps += 1
        with self.stragglers.step(self.steps):
            self.step()
        self.stragglers.compare()

    def deterministic_step(self) -> None:
        with deterministic(True, CPU):
            self.step()

    def z_loss_step(self) -> None:
        stage = self.engine.stages[-1]
        self.engine.loss = stage.loss = self.losses[1]
        self.step()
        self.engine.loss = stage.loss = self.losses[0]


if __name__ == "__main__":
    sys.exit(main())
