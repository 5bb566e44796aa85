"""One attempt at an all-reduce, in a forked process that is killed when its time is over.

A failed collective can leave NCCL waiting on the GPU, or end the process. The rank itself must survive that to
report it, so it never initialises CUDA or a process group.
"""

import json
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gpt.errors import one_line
from gpt.files.json_text import decode_json
from launch.preflight.board import open_store
from launch.processes.environment import ClusterEnvironment
from launch.processes.failures import describe_exit
from launch.processes.machine_facts import matmul_gflops
from launch.processes.rank_process import die_with_parent
from launch.processes.sealing import seal_object_collectives
from parallel.layout.gloo_groups import use_one_gloo_worker

SMALL_BYTES = 8
REPEATS = 3  # the fastest counts
MARGIN_S = 5.0  # by which the rank waits longer than the collectives of gloo, whose errors say more
PHASES = ("start", "compute", "loop back", "join", "reduce", "end")


@dataclass(frozen=True)
class Attempt:
    """An all-reduce in each of several disjoint groups of ranks. `number` tells attempts apart."""

    number: int
    groups: tuple[tuple[int, ...], ...]
    size_bytes: int
    limit_s: float
    computes: bool = False  # also measure a matrix product

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "Attempt":
        """The attempt that a rank has read from the board."""
        return cls(**{**message, "groups": tuple(map(tuple, message["groups"]))})

    def group_of(self, rank: int) -> tuple[int, ...]:
        """The group of a rank; empty if it takes no part."""
        return next((group for group in self.groups if rank in group), ())


@dataclass(frozen=True)
class ProbeResult:
    """How an attempt ended on one rank: `phase` is "end" after a success, else the one in which it failed."""

    phase: str
    error: str = ""
    seconds: float = 0.0  # of one all-reduce of all bytes
    latency_s: float = 0.0  # of one of SMALL_BYTES
    gflops: float = 0.0

    @property
    def ok(self) -> bool:
        """The sums were right."""
        return self.phase == "end"

    @property
    def is_own_fault(self) -> bool:
        """It failed before any other rank had a part in it, or its process was killed."""
        return not self.ok and (PHASES.index(self.phase) <= PHASES.index("loop back") or "killed by" in self.error)


def try_all_reduce(environment: ClusterEnvironment, attempt: Attempt, *, backend: str) -> ProbeResult:
    """Take part in an attempt. Every rank of a group calls it; returns after the limit and MARGIN_S at the latest."""
    ends_at = time.monotonic() + attempt.limit_s + MARGIN_S
    context = multiprocessing.get_context("fork")
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=_probe, args=(environment, attempt, backend, sends), daemon=True)
    process.start()
    sends.close()
    found: dict[str, Any] = {"phase": "start"}
    try:
        while receives.poll(max(0.0, ends_at - time.monotonic())):
            found |= decode_json(receives.recv())
        return ProbeResult(**{**found, "error": f"no end within {attempt.limit_s:g} s"})
    except EOFError:  # it has ended
        process.join(max(1.0, ends_at - time.monotonic()))
        code = process.exitcode
        if found["phase"] != "end" and not found.get("error"):
            if code in (-signal.SIGABRT, None) and found["phase"] in ("join", "reduce"):  # NCCL's watchdog
                found["error"] = "the collective was aborted"
            else:
                found["error"] = f"its process ended: {describe_exit(code or 0)}"
        return ProbeResult(**found)
    finally:
        process.kill()
        process.join()
        receives.close()


def _probe(environment: ClusterEnvironment, attempt: Attempt, backend: str, sends: Any) -> None:
    """The forked process: say which phase begins, then the result or the error."""
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)

    def say(**fields: Any) -> None:
        sends.send(json.dumps(fields))

    try:
        say(**_measure(environment, attempt, backend, say), phase="end")
    except Exception as error:  # whatever torch raises: the rank reports it
        say(error=one_line(str(error))[:300])


def _measure(environment: ClusterEnvironment, attempt: Attempt, backend: str, say: Any) -> dict[str, float]:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore, PrefixStore

    seal_object_collectives()
    use_one_gloo_worker()
    group, found = attempt.group_of(environment.rank), {}
    is_gpu = backend == "nccl"
    device = torch.device("cuda", environment.local_rank) if is_gpu else torch.device("cpu")
    say(phase="compute")
    if is_gpu:
        torch.cuda.set_device(device)
    if attempt.computes:
        found["gflops"] = matmul_gflops(device.type)["bf16" if is_gpu else "fp32"]
    timeout = timedelta(seconds=attempt.limit_s * 2 + 60 if is_gpu else attempt.limit_s)  # see MARGIN_S
    say(phase="loop back")
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    dist.all_reduce(torch.ones(1, device=device))
    dist.destroy_process_group()
    say(phase="join")
    store = open_store(environment, serves=False, timeout_s=attempt.limit_s, prefix=f"attempt {attempt.number}")
    store = PrefixStore(f"group {group[0]}", store)
    dist.init_process_group(
        backend, store=store, rank=group.index(environment.rank), world_size=len(group), timeout=timeout
    )
    say(phase="reduce")
    latency_s = _timed(group, environment.rank, SMALL_BYTES, device)
    seconds = _timed(group, environment.rank, attempt.size_bytes, device)
    dist.destroy_process_group()
    return found | {"latency_s": latency_s, "seconds": seconds}


def _timed(group: Sequence[int], rank: int, size_bytes: int, device: Any) -> float:
    """Seconds of an all-reduce of this many bytes. RuntimeError: a sum is wrong. All summands are whole numbers."""
    import torch
    import torch.distributed as dist

    count = size_bytes // 4
    positions = torch.arange(count, device=device, dtype=torch.float32) % 97
    expected = positions * len(group) + sum(each % 251 for each in group)
    best_s = float("inf")
    for _ in range(REPEATS + 1):
        values = positions + rank % 251
        dist.barrier()
        started_at = time.perf_counter()
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started_at)
        wrong = int((values != expected).sum())
        if wrong:
            raise RuntimeError(f"{wrong} of {count} sums are wrong")
    return best_s
