"""Save while training continues: training waits only for a copy to host memory, and a thread writes the files.

One save runs at a time. The thread takes the same steps as a blocking save and writes the same bytes. It communicates
over its own gloo group, so that training and saves never wait for each other's collectives.
"""

import contextlib
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from os import PRIO_PROCESS, getpriority, setpriority
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from gpt.errors import ConfigError
from gpt.training.config import Retention
from gpt.training.engine import SaveResult
from parallel.agreement import Group, PeerLost, combine, is_distributed
from parallel.checkpoint.folders import published_step, step_name
from parallel.checkpoint.plan import ShardPiece, WritePlan, local, make_plan
from parallel.checkpoint.save import Save, ShardBytes, check_save, write_checkpoint
from parallel.errors import ForgedMessage

Tensors = Mapping[str, torch.Tensor]


class PlanMaker(Protocol):
    """`make_plan` or `make_rank_plan`."""

    def __call__(self, tensors: Tensors, group: Group, *, path: Path) -> WritePlan: ...


# How long a rank waits for the slowest writer. A dead rank is noticed at once; a silent one is noticed much earlier by
# the collectives of training.
_SAVE_TIMEOUT = timedelta(hours=2)
_JOIN_TIMEOUT = timedelta(minutes=10)  # for the ranks to form the group, before any save
_BLOCK_BYTES = 16 * 2**20  # one block is written while the next is hashed in another thread
_NICENESS = 10  # added to the niceness of training: on a CPU, training has priority


class BackgroundWriter:
    """Writes one save at a time in a thread, from host memory that all savers of this rank share.

    Every rank makes one. `device`: the device of training, where the reductions that training waits for run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._group: dist.ProcessGroup | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._running: _Running | None = None

    def join(self) -> Group:
        """The process group of saves, made at the first call. Collective."""
        if self._group is None and is_distributed():
            self._group = dist.new_group(backend="gloo", timeout=_JOIN_TIMEOUT, group_desc="checkpoints")
            _set_pg_timeout(_SAVE_TIMEOUT, self._group)
        return self._group

    def reserve(self, plan: WritePlan) -> None:
        """Allocate host memory for the pieces of a plan, unless there is enough. Not during a save."""
        assert self._running is None
        needed_bytes = sum(piece.size_bytes for piece in plan.pieces)
        if needed_bytes > self._buffer.numel():
            self._buffer = _host_memory(needed_bytes, pinned=self.device.type == "cuda")

    def start(self, save: Save, owner: "BackgroundSaver", *, tensors: Tensors, started_at: float) -> float:
        """Copy the tensors and start to write them; return the seconds since `started_at`."""
        self._copy(save.plan, tensors)
        stall_s = time.perf_counter() - started_at
        self._running = _Running(save, owner, self._buffer, self._group, stall_s=stall_s)
        self._running.thread.start()
        return stall_s

    def is_busy_for(self, owner: "BackgroundSaver") -> bool:
        """Return whether the save under way is this saver's. The same on all ranks."""
        return self._running is not None and self._running.owner is owner

    def wait(self) -> None:
        """Wait for the save under way, if there is one, and hand its result to its saver. Collective."""
        if self._running is not None:
            self._running.thread.join()
            self._running.raise_forgery()
            self._collect()

    def poll(self) -> None:
        """Collect the result of the save under way if it has ended on all ranks. Collective: one small reduction."""
        if self._running is None:
            return
        self._running.raise_forgery()
        if not self._anywhere(self._running.thread.is_alive()):
            self._collect()

    def _collect(self) -> None:
        """Take over the result of a save whose thread has ended, on every rank."""
        assert self._running is not None
        self._running.thread.join()
        running, self._running = self._running, None
        result = running.result
        assert result is not None
        if (
            self._anywhere(result.error is not None) and result.error is None
        ):  # the last agreement did not reach this rank
            result = replace(result, path=None, error="another rank reports a failure")
        running.owner.results.append(result)

    def _anywhere(self, here: bool) -> bool:
        if not is_distributed():
            return here
        flag = torch.tensor(float(here), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    @torch.no_grad()
    def _copy(self, plan: WritePlan, tensors: Tensors) -> None:
        """Copy this rank's pieces into the buffer, in the order of the file."""
        end = 0
        for piece in plan.pieces:
            start, end = end, end + piece.size_bytes
            target = self._buffer[start:end].view(piece.dtype).view(piece.shape)
            source = local(tensors[piece.name])
            assert source.shape == target.shape, f"{piece.name}: {tuple(source.shape)}, planned {piece.shape}"
            target.copy_(source, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


class BackgroundSaver:
    """Saves one set of tensors repeatedly. Every rank makes one, and all call its methods in the same order.

    `tensors`: returns the current tensors; names, shapes, dtypes and layouts must not change. `make_plan`: `make_plan`
    for a checkpoint of all ranks together, `make_rank_plan` for a separate one of each rank.
    """

    def __init__(
        self, tensors: Callable[[], Tensors], writer: BackgroundWriter, *, make_plan: PlanMaker = make_plan
    ) -> None:
        self.results: list[SaveResult] = []
        self._tensors, self._writer, self._make_plan = tensors, writer, make_plan
        self._plan: WritePlan | None = None

    def plan(self, directory: Path) -> WritePlan:
        """The pieces that this rank will write, planned once. Collective; errors as for `make_plan`."""
        if self._plan is None:
            self._writer.wait()
            self._plan = self._make_plan(self._tensors(), self._writer.join(), path=directory)
        return self._plan

    def prepare(self, directory: Path) -> WritePlan:
        """Make the plan and allocate host memory, so that the first save is as fast as the next. Not during a save."""
        plan = self.plan(directory)
        self._writer.reserve(plan)
        return plan

    def start(
        self,
        directory: Path,
        *,
        step: int,
        state: dict[str, object],
        keep: Retention,
        private_below: Path | None = None,
    ) -> float:
        """Copy the tensors and start to save them as `directory/step-000000123`; return how long training waited, in s.

        Waits for an earlier save first. Collective; arguments as for `save_checkpoint`. Node-local, `directory` is this
        rank's, and `private_below` as for `make_private`. `finished` returns the result, or the failure.
        """
        started_at = time.perf_counter()
        self._writer.wait()
        plan = self.prepare(directory)
        save = Save(Path(directory) / step_name(step), plan, check_save(step, state, keep), keep, private_below)
        return self._writer.start(save, self, tensors=self._tensors(), started_at=started_at)

    def finished(self, *, wait: bool) -> list[SaveResult]:
        """The saves that have ended since the last call, in order, the same on all ranks. `wait`: all saves.

        Collective. It costs one small reduction while a save of this saver is under way, and nothing otherwise.
        """
        if self._writer.is_busy_for(self):
            if wait:
                self._writer.wait()
            else:
                self._writer.poll()
        results, self.results = self.results, []
        return results


class _Running:
    """The save under way: its thread, and its result once the thread has ended."""

    def __init__(
        self, save: Save, owner: BackgroundSaver, buffer: torch.Tensor, group: Group, *, stall_s: float
    ) -> None:
        self.owner = owner
        self.result: SaveResult | None = None
        self._forgery: ForgedMessage | None = None
        self._save, self._buffer, self._group, self._stall_s = save, buffer, group, stall_s
        # A daemon thread: if training ends with an error, the process does not wait for the save. Its folder is still
        # hidden.
        self.thread = threading.Thread(target=self._run, name=f"saving step {published_step(save.final)}", daemon=True)

    def raise_forgery(self) -> None:
        """ForgedMessage: one ended the thread, so the other ranks would wait for this one without end."""
        if self._forgery is not None:
            raise self._forgery

    def _run(self) -> None:
        try:
            self._save_and_measure()
        except ForgedMessage as error:
            self._forgery = error

    def _save_and_measure(self) -> None:
        if sys.platform == "linux":  # where niceness is per thread, and inherited by the threads that it starts
            thread = threading.get_native_id()
            setpriority(PRIO_PROCESS, thread, min(19, getpriority(PRIO_PROCESS, thread) + _NICENESS))
        started_at = time.perf_counter()
        error = None
        try:
            write_checkpoint(self._save, lambda: _blocks(self._buffer, self._save.plan.pieces), self._group)
        except ForgedMessage:
            raise
        except ConfigError as failure:
            error = str(failure)
        except Exception as failure:  # our bug, or this process is ending
            if threading.main_thread().is_alive():
                traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
        mine = _Measured(self._stall_s, time.perf_counter() - started_at, self._written_bytes())
        try:
            whole = combine(mine, _slowest, self._group)
        except PeerLost as lost:
            whole, error = mine, error or str(lost)
        self.result = SaveResult(
            step=published_step(self._save.final),
            path=None if error else self._save.final,
            error=error,
            stall_s=whole.stall_s,
            write_s=whole.write_s,
            bytes=whole.bytes,
        )

    def _written_bytes(self) -> int:
        return self._save.size_bytes if self._save.is_leader(self._group) else 0


@dataclass(frozen=True)
class _Measured:
    stall_s: float
    write_s: float
    bytes: int


def _slowest(everyone: list[_Measured]) -> _Measured:
    """The times of the slowest rank, and the bytes of all."""
    return _Measured(
        max(one.stall_s for one in everyone), max(one.write_s for one in everyone), sum(one.bytes for one in everyone)
    )


def _blocks(buffer: torch.Tensor, pieces: tuple[ShardPiece, ...]) -> ShardBytes:
    data = buffer.numpy().data[: sum(piece.size_bytes for piece in pieces)]
    for start in range(0, len(data), _BLOCK_BYTES):
        yield data[start : start + _BLOCK_BYTES]


def _host_memory(size_bytes: int, *, pinned: bool) -> torch.Tensor:
    """Allocate memory and touch every page, so that no page fault delays a copy. `pinned`: a GPU copies to it directly.

    It is registered with CUDA, since torch rounds the size of pinned memory up to a power of two.
    """
    buffer = torch.empty(size_bytes, dtype=torch.uint8)
    buffer.zero_()
    if pinned and size_bytes:
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(cudart.cudaHostRegister(buffer.data_ptr(), size_bytes, 0)) == 0:
            weakref.finalize(buffer, cudart.cudaHostUnregister, buffer.data_ptr())
        else:  # copies are slower then. CUDA reports the error at the next kernel: run one here, before training does
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda")
    return buffer
