"""Find ranks that need longer for a step than their peers, by the time that each needs for itself.

All ranks end a step together, because they wait for each other in collectives. A rank's own time is the step without
the time in which communication was under way and nothing was computed. torch's profiler distinguishes the two: on CUDA
by kernels, NCCL's (which spin while they wait) and all others; on a CPU by operators. If neither ran, because the host
is too slow to start kernels or is reading data, the time is the rank's own.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler import profile
from torch.profiler import ProfilerActivity, supported_activities

from gpt.health.watchers import Finding
from parallel.agreement import combine
from parallel.layout.layout import Layout

SLOW_RATIO = 1.15  # own time / median of the peers; low enough that noise of a few percent hides no rank at 1.2
CONFIRM_MEASUREMENTS = 10  # measurements that confirm a change
CONFIRM_AGREEING = 8  # how many of these must show it
CONFIRM_EVERY_STEPS = 2  # how often to measure while a change is being confirmed

Times = NDArray[np.float64]  # (ranks, 2): seconds that each rank needed for itself in a step; of these, reading data


@dataclass(frozen=True)
class SpeedChange:
    """A rank that became slow or recovered, by the measurements that confirmed it."""

    rank: int
    slow: bool
    ratio: float  # its own time / the median of its peers
    reading: float  # the share of its extra time that it spends reading data, 0 to 1
    peers: int


class StragglerDetector:
    """Decides from a series of measurements which ranks are slow.

    A measurement that disagrees with the present state raises a suspicion; 8 of the next 10 must confirm it.
    """

    def __init__(self, layout: Layout) -> None:
        stage_size = layout.tensor * layout.data  # ranks that do the same work: those of one pipeline rank
        self.stages = [np.arange(first, first + stage_size) for first in range(0, layout.world_size, stage_size)]
        self.slow: frozenset[int] = frozenset()
        self.suspected: frozenset[int] = frozenset()  # ranks that may have become slow, or recovered
        self.seen: list[tuple[Times, frozenset[int]]] = []  # measurements since the suspicion, and who was slow in each
        self.ratios = np.ones(layout.world_size)  # of the last measurement

    @property
    def has_peers(self) -> bool:
        return len(self.stages[0]) > 1

    def add(self, times: Times) -> list[SpeedChange]:
        """Return the changes that this measurement confirms."""
        self.ratios = self._ratios(times)
        if not self.suspected:
            self.suspected = _slow(self.ratios) ^ self.slow
            return []
        self.seen.append((times, _slow(self.ratios)))
        changed = self._changed()
        if len(self.seen) < CONFIRM_MEASUREMENTS and changed:
            return []
        confirmed = [self._change(rank) for rank in sorted(changed)] if len(self.seen) == CONFIRM_MEASUREMENTS else []
        self.slow ^= {change.rank for change in confirmed}
        self.suspected, self.seen = frozenset(), []
        return confirmed

    def _changed(self) -> set[int]:
        """Return the suspected ranks whose change is not disproved yet."""
        agreeing = {
            rank: sum((rank in slow) != (rank in self.slow) for _, slow in self.seen) for rank in self.suspected
        }
        return {
            rank
            for rank, times in agreeing.items()
            if len(self.seen) - times <= CONFIRM_MEASUREMENTS - CONFIRM_AGREEING
        }

    def _change(self, rank: int) -> SpeedChange:
        """Describe a confirmed change. Each measurement compares the rank with its peers before the median over all is
        taken, so a slowdown of the whole machine does not count."""
        times = np.stack([times for times, _ in self.seen])  # (measurements, ranks, 2)
        mine, usual = times[:, rank], np.median(times[:, self._peers(rank)], axis=1)  # (measurements, 2)
        more = np.median(mine - usual, axis=0)  # (2,)
        reading = float(np.clip(more[1] / more[0], 0, 1)) if more[0] > 0 else 0.0
        ratio = float(np.median(mine[:, 0] / usual[:, 0]))
        return SpeedChange(rank, rank not in self.slow, ratio, reading, len(self._peers(rank)))

    def _peers(self, rank: int) -> NDArray[np.int64]:
        stage = self.stages[rank // len(self.stages[0])]
        peers: NDArray[np.int64] = stage[stage != rank]
        return peers

    def _ratios(self, times: Times) -> Times:
        """Return own time / median of the peers for each rank. Sorts each stage once, as there may be thousands of
        ranks."""
        own = times[:, 0].reshape(len(self.stages), -1)
        order = own.argsort(axis=1)
        position, ordered = order.argsort(axis=1), np.take_along_axis(own, order, axis=1)
        peers = own.shape[1] - 1
        # without the rank itself, the sorted peer i is at i, or at i + 1 if the rank comes before it
        low, high = (np.take_along_axis(ordered, i + (position <= i), axis=1) for i in ((peers - 1) // 2, peers // 2))
        ratios: Times = (2 * own / (low + high)).ravel()
        return ratios


class Stragglers:
    """The StepWatch of gpt/health/watchers.py: measures one step in `every_steps` and compares the ranks.

    Every rank has one for the whole run. Enter `step` around each step and `reading` around reading its data, and call
    `compare` after it.
    """

    def __init__(self, layout: Layout, device: torch.device, *, every_steps: int) -> None:
        self.detector = StragglerDetector(layout)  # only rank 0 feeds it
        self._suspects = False  # as decided by rank 0
        self.device = device
        self.every_steps = every_steps
        self._reading_s = 0.0
        self._measured: tuple[float, float] | None = None

    def due(self, step: int) -> bool:
        """Return whether to measure this step. A rank alone in its stage has no peers to compare with."""
        every = (
            min(CONFIRM_EVERY_STEPS, self.every_steps)
            if self._suspects or self.detector.suspected
            else self.every_steps
        )
        return self.detector.has_peers and step % every == 0 and can_profile(self.device)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Measure a training step if it is due, for the next `compare`."""
        self._measured = None
        if not self.due(step):
            yield
            return
        self._reading_s = 0.0
        self._finish()  # so that the previous update is not measured
        with step_profile(self.device) as seen:
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
        """Wait until the device has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def compare(self) -> tuple[dict[str, float | int], list[Finding]]:
        """Return metrics of the slowest rank and the confirmed changes, the same on all ranks.

        All ranks must call it after each step. If the step was measured, rank 0 gathers two numbers from each, decides,
        and sends the decision to all.
        """
        if self._measured is None:
            return {}, []
        seen = combine((socket.gethostname(), *self._measured), self._decide, None)
        self._measured, self._suspects = None, seen.suspects
        return {"straggler/slowest_rank": seen.slowest, "straggler/ratio": seen.ratio}, seen.findings

    def _decide(self, everyone: list[tuple[str, float, float]]) -> "_Decision":
        """The decision on one measurement: by rank, the host and the times."""
        changes = self.detector.add(np.array([times for _, *times in everyone]))
        slowest = int(np.argmax(self.detector.ratios))
        return _Decision(
            slowest,
            float(self.detector.ratios[slowest]),
            [finding(change, everyone[change.rank][0]) for change in changes],
            suspects=bool(self.detector.suspected),
        )


@dataclass(frozen=True)
class _Decision:
    """The slowest rank of a measurement and its ratio, confirmed changes, and whether ranks are suspected."""

    slowest: int
    ratio: float
    findings: list[Finding]
    suspects: bool


def finding(change: SpeedChange, host: str) -> Finding:
    """Turn a change into an event."""
    peers = "its peer" if change.peers == 1 else f"the median of its {change.peers} peers"
    percent = f"{abs(change.ratio - 1):.0%} {'slower' if change.ratio >= 1 else 'faster'} than {peers}"
    data = f", of which reading data {change.reading:.0%}" if change.slow and change.reading >= 0.1 else ""
    text = f"rank {change.rank} on {host}: {percent} over {CONFIRM_MEASUREMENTS} measured steps{data}"
    fields = {"rank": change.rank, "host": host, "ratio": change.ratio, "reading": change.reading}
    return (
        Finding("straggler", text, fields)
        if change.slow
        else Finding("straggler_gone", f"{text}, back to normal", fields)
    )


def can_profile(device: torch.device) -> bool:
    """Return whether this torch records what the device does. A build without CUPTI does not record a GPU."""
    return device.type != "cuda" or ProfilerActivity.CUDA in supported_activities()  # type: ignore[no-untyped-call]


def step_profile(device: torch.device) -> profile:
    """A profile of a device's own work, to be entered: kernels on a GPU, operators on a CPU.

    torch.profiler.profile holds itself in a reference cycle, so its events would stay until a full collection.
    """
    on_gpu = device.type == "cuda"
    return profile(use_cpu=not on_gpu, use_device="cuda" if on_gpu else None, use_kineto=True)


def waiting_s(seen: profile, device: torch.device) -> float:
    """Return the seconds of a profile in which communication was under way and nothing was computed."""
    communication: list[tuple[int, int]] = []
    computation: list[tuple[int, int]] = []
    assert seen.kineto_results is not None
    for event in seen.kineto_results.events():
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
    """Return the length of the union of (start, end) spans."""
    if not spans:
        return 0
    ordered = np.array(sorted(spans), dtype=np.int64)  # (n, 2)
    ends = np.maximum.accumulate(ordered[:, 1])
    covered_to = np.concatenate((ordered[:1, 0], ends[:-1]))
    return int(np.maximum(ends - np.maximum(ordered[:, 0], covered_to), 0).sum())


def _slow(ratios: Times) -> frozenset[int]:
    return frozenset(np.flatnonzero(ratios > SLOW_RATIO).tolist())
