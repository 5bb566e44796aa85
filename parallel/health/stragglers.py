"""Names ranks that need longer for a step than their peers, by the time each needs for itself; never acts on it.

All ranks end a step together, since they wait for each other in collectives. What a rank needs for itself is the step
without the time in which communication was under way and nothing was computed. torch's profiler tells the two apart:
on CUDA by kernels, NCCL's (which spin while they wait) and all others; on a CPU by operators. Where neither ran, as
when a host is too slow to start kernels or is reading data, the time is the rank's own.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from gpt.health.watchers import Finding
from parallel.agreement import exchange
from parallel.layout.layout import Layout

SLOWER = 1.15  # times the median of its peers: slow from here on, so that noise of some percent hides none of 1.2
CLOSELY = 10  # measurements by which a change is confirmed
AGREEING = 8  # of these, so many must show it
CLOSE_STEPS = 2  # while a change is being confirmed, one step in so many is measured

Times = NDArray[np.float64]  # (ranks, 2): seconds of its own that each needed for a step, and those of reading data


@dataclass(frozen=True)
class Change:
    """A rank that has become slow, or is so no more, over the measurements that confirmed it."""

    rank: int
    slow: bool
    ratio: float  # its own time by the median of its peers'
    reading: float  # the share of what it needs more that it spends reading data, 0 to 1
    peers: int


class Judge:
    """Decides from one measurement after the other which ranks are slow. The same numbers give the same decisions, so
    that all ranks agree without a word.

    A first measurement that disagrees with what is known is a suspicion. It is confirmed by 8 of the next 10.
    """

    def __init__(self, layout: Layout) -> None:
        stage_size = layout.tensor * layout.data  # ranks that do the same work: those of one pipeline rank
        self.stages = [np.arange(first, first + stage_size) for first in range(0, layout.world_size, stage_size)]
        self.slow: frozenset[int] = frozenset()
        self.suspected: frozenset[int] = frozenset()  # of a change, either way
        self.seen: list[tuple[Times, frozenset[int]]] = []  # since the suspicion; with who was slow in each
        self.ratios = np.ones(layout.world_size)  # of the last measurement

    @property
    def has_peers(self) -> bool:
        return len(self.stages[0]) > 1

    def add(self, times: Times) -> list[Change]:
        """The changes that this measurement confirms."""
        self.ratios = self._ratios(times)
        if not self.suspected:
            self.suspected = _slow(self.ratios) ^ self.slow
            return []
        self.seen.append((times, _slow(self.ratios)))
        changed = self._changed()
        if len(self.seen) < CLOSELY and changed:
            return []
        confirmed = [self._change(rank) for rank in sorted(changed)] if len(self.seen) == CLOSELY else []
        self.slow ^= {change.rank for change in confirmed}
        self.suspected, self.seen = frozenset(), []
        return confirmed

    def _changed(self) -> set[int]:
        """Those suspected whose change is not yet disproved."""
        agreeing = {
            rank: sum((rank in slow) != (rank in self.slow) for _, slow in self.seen) for rank in self.suspected
        }
        return {rank for rank, times in agreeing.items() if len(self.seen) - times <= CLOSELY - AGREEING}

    def _change(self, rank: int) -> Change:
        """By medians over measurements, in each of which the rank stands beside its peers: what slows all of them for a
        moment counts for none."""
        times = np.stack([times for times, _ in self.seen])  # (measurements, ranks, 2)
        mine, usual = times[:, rank], np.median(times[:, self._peers(rank)], axis=1)  # (measurements, 2)
        more = np.median(mine - usual, axis=0)  # (2,)
        reading = float(np.clip(more[1] / more[0], 0, 1)) if more[0] > 0 else 0.0
        ratio = float(np.median(mine[:, 0] / usual[:, 0]))
        return Change(rank, rank not in self.slow, ratio, reading, len(self._peers(rank)))

    def _peers(self, rank: int) -> NDArray[np.int64]:
        stage = self.stages[rank // len(self.stages[0])]
        peers: NDArray[np.int64] = stage[stage != rank]
        return peers

    def _ratios(self, times: Times) -> Times:
        """Of each rank, its own time by the median of its peers'. Sorts each stage once: ranks may be thousands."""
        own = times[:, 0].reshape(len(self.stages), -1)
        order = own.argsort(axis=1)
        place, ordered = order.argsort(axis=1), np.take_along_axis(own, order, axis=1)
        peers = own.shape[1] - 1
        # of the others, sorted, the one at i is at i + 1 where the rank itself comes before it
        low, high = (np.take_along_axis(ordered, i + (place <= i), axis=1) for i in ((peers - 1) // 2, peers // 2))
        ratios: Times = (2 * own / (low + high)).ravel()
        return ratios


class Stragglers:
    """One for a run, on every rank. One step in `every_steps` is measured: call `step` around each, `reading` inside it
    around what reads data, `compare` after it."""

    def __init__(self, layout: Layout, device: torch.device, *, every_steps: int) -> None:
        self.judge = Judge(layout)
        self.device = device
        self.every_steps = every_steps
        self._reading_s = 0.0
        self._measured: tuple[float, float] | None = None

    def due(self, step: int) -> bool:
        every = min(CLOSE_STEPS, self.every_steps) if self.judge.suspected else self.every_steps
        return self.judge.has_peers and step % every == 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around all of a training step; what it measures, `compare` takes."""
        self._measured = None
        if not self.due(step):
            yield
            return
        self._reading_s = 0.0
        activity = ProfilerActivity.CUDA if self.device.type == "cuda" else ProfilerActivity.CPU
        self._finish()  # the update of the step before
        with profile(activities=[activity], acc_events=False) as seen:
            started_at = time.perf_counter()
            yield
            self._finish()
            elapsed_s = time.perf_counter() - started_at
        self._measured = elapsed_s - waiting_s(seen, self.device), self._reading_s

    @contextmanager
    def reading(self) -> Iterator[None]:
        started_at = time.perf_counter()
        yield
        self._reading_s += time.perf_counter() - started_at

    def _finish(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(self) -> tuple[dict[str, float | int], list[Finding]]:
        """After each step, on all ranks: where it was measured, gathers two numbers of each. Gives the slowest rank,
        beside its peers, and what is confirmed to have changed, the same on all ranks."""
        if self._measured is None:
            return {}, []
        mine = torch.tensor(self._measured, dtype=torch.float64, device=self.device)
        everyone = mine.new_empty(dist.get_world_size() * 2)
        dist.all_gather_single(everyone, mine)
        changes = self.judge.add(everyone.view(-1, 2).cpu().numpy())
        self._measured = None
        slowest = int(np.argmax(self.judge.ratios))
        values = {"straggler/slowest_rank": slowest, "straggler/ratio": float(self.judge.ratios[slowest])}
        hosts = exchange(socket.gethostname(), None) if changes else []
        return values, [finding(change, hosts[change.rank]) for change in changes]


def finding(change: Change, host: str) -> Finding:
    """A change as an event."""
    peers = "its peer" if change.peers == 1 else f"the median of its {change.peers} peers"
    percent = f"{abs(change.ratio - 1):.0%} {'slower' if change.ratio >= 1 else 'faster'} than {peers}"
    data = f", of which reading data {change.reading:.0%}" if change.slow and change.reading >= 0.1 else ""
    text = f"rank {change.rank} on {host}: {percent} over {CLOSELY} measured steps{data}"
    fields = {"rank": change.rank, "host": host, "ratio": change.ratio, "reading": change.reading}
    return (
        Finding("straggler", text, fields) if change.slow else Finding("straggler_gone", f"{text}, as it was", fields)
    )


def waiting_s(seen: profile, device: torch.device) -> float:
    """Seconds of a profile in which communication was under way and nothing was computed."""
    communication: list[tuple[int, int]] = []
    computation: list[tuple[int, int]] = []
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    for event in seen.profiler.kineto_results.events():
        name: str = event.name()
        if device.type == "cuda":
            if event.device_type() != DeviceType.CUDA:
                continue
            kind = communication if name.startswith("nccl") else computation
        elif name.startswith("gloo:"):
            kind = communication
        elif name.startswith("aten::"):
            kind = computation
        else:
            continue
        kind.append((event.start_ns(), event.end_ns()))
    return (_covered_ns(communication + computation) - _covered_ns(computation)) / 1e9


def _covered_ns(spans: Sequence[tuple[int, int]]) -> int:
    """The length of the union of spans."""
    if not spans:
        return 0
    ordered = np.array(sorted(spans), dtype=np.int64)  # (n, 2)
    ends = np.maximum.accumulate(ordered[:, 1])
    covered_to = np.concatenate((ordered[:1, 0], ends[:-1]))
    return int(np.maximum(ends - np.maximum(ordered[:, 0], covered_to), 0).sum())


def _slow(ratios: Times) -> frozenset[int]:
    return frozenset(np.flatnonzero(ratios > SLOWER).tolist())
