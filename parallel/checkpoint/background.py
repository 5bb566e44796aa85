"""Saves while training goes on: training waits for a copy in host memory, a thread does the rest; one at a time.

The thread writes what a waiting save would write, byte for byte, by the same steps. It talks to the other ranks over a
gloo group of its own, never over one that training uses, so that neither waits for the other.
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
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from gpt.errors import ConfigError
from gpt.training.config import Retention
from gpt.training.engine import SaveResult
from parallel.agreement import ALONE, PeerLost, exchange, is_distributed
from parallel.checkpoint.manifest import step_name
from parallel.checkpoint.plan import Piece, WritePlan, make_plan
from parallel.checkpoint.save import Save, ShardBytes, check_save, local, write_checkpoint

Tensors = Mapping[str, torch.Tensor]

# A rank waits so long for the slowest writer. The death of a rank is noticed at once, its silence by training's own
# collectives much earlier.
_PATIENCE = timedelta(hours=2)
_MEETING = timedelta(minutes=10)  # for the ranks to find each other, before any save: a dead one is missed in this time
_BLOCK_BYTES = 16 * 2**20  # hashed in one thread while the one before is written
_NICER = 10  # the threads that write, than those that train, so that training on a CPU comes first


class BackgroundSaver:
    """Saves one set of tensors again and again. All ranks make one, and call its methods in the same order.

    `tensors`: gives those to be saved as they are now; names, shapes, dtypes and layouts must not change. `device`:
    where training computes; agreements that training waits for are made there.
    """

    def __init__(self, tensors: Callable[[], Tensors], *, device: torch.device) -> None:
        self._tensors = tensors
        self._device = device
        self._group: dist.ProcessGroup | None = None
        self._plans: dict[bool, WritePlan] = {}  # by whether each rank makes a checkpoint of its own
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._running: _Running | None = None
        self._results: list[SaveResult] = []

    def plan(self, directory: Path, *, each_its_own: bool = False) -> WritePlan:
        """What this rank will write, made once. Collective; errors as checkpoint_plan.make_plan."""
        if each_its_own not in self._plans:
            self.wait()
            if self._group is None and is_distributed():
                self._group = dist.new_group(backend="gloo", timeout=_MEETING, group_desc="checkpoints")
                _set_pg_timeout(_PATIENCE, self._group)
            tensors = self._tensors()
            if each_its_own:
                plan = make_plan({name: local(t) for name, t in tensors.items()}, ALONE, path=directory)
            else:
                plan = make_plan(tensors, self._group, path=directory)
            self._plans[each_its_own] = plan
        return self._plans[each_its_own]

    def prepare(self, directory: Path, *, each_its_own: bool = False) -> WritePlan:
        """`plan`, and see that the memory is there which copies go to, so that the first save waits no longer than the
        next. Not while a save is under way."""
        assert self._running is None
        plan = self.plan(directory, each_its_own=each_its_own)
        needed_bytes = sum(piece.size_bytes for piece in plan.pieces)
        if needed_bytes > self._buffer.numel():
            self._buffer = _host_memory(needed_bytes, pinned=self._device.type == "cuda")
        return plan

    def start(
        self,
        directory: Path,
        *,
        step: int,
        state: dict[str, object],
        keep: Retention,
        each_its_own: bool = False,
    ) -> float:
        """Copy the tensors and begin to save them as `directory/step-000000123`; the seconds that training waited.

        While an earlier save goes on, this waits for it first. Collective; arguments as for checkpoint.save.
        `each_its_own`: see checkpoint_save.Save; `directory` is then this rank's. A failure comes out of `finished`.
        """
        started_at = time.perf_counter()
        self.wait()
        plan = self.prepare(directory, each_its_own=each_its_own)
        save = Save(Path(directory) / step_name(step), plan, check_save(step, state, keep), keep, each_its_own)
        self._copy(plan)
        stall_s = time.perf_counter() - started_at
        self._running = _Running(save, self._buffer, self._group, step=step, stall_s=stall_s)
        self._running.thread.start()
        return stall_s

    def wait(self) -> None:
        """Wait for the save that is under way, if one is; its result is kept for `finished`. Collective."""
        if self._running is not None:
            self._running.thread.join()
            self._collect()

    def finished(self, *, wait: bool) -> list[SaveResult]:
        """The saves that have ended since the last call, in order, the same on all ranks.

        Collective; only while a save is under way does it cost anything: a reduction of two numbers.
        """
        if wait:
            self.wait()
        elif self._running is not None and not self._anywhere(self._running.thread.is_alive()):
            self._collect()
        results, self._results = self._results, []
        return results

    def _collect(self) -> None:
        """Take over the result of a save whose thread has ended, on every rank."""
        assert self._running is not None
        self._running.thread.join()
        result, self._running = self._running.result, None
        assert result is not None
        if self._anywhere(result.error is not None) and result.error is None:  # the last agreement got lost on the way
            result = replace(result, path=None, error="another rank reports a failure")
        self._results.append(result)

    def _anywhere(self, here: bool) -> bool:
        if not is_distributed():
            return here
        flag = torch.tensor(float(here), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    @torch.no_grad()
    def _copy(self, plan: WritePlan) -> None:
        """This rank's pieces, one after the other as they will lie in the file, into the buffer."""
        tensors = self._tensors()
        end = 0
        for piece in plan.pieces:
            start, end = end, end + piece.size_bytes
            target = self._buffer[start:end].view(piece.dtype).view(piece.shape)
            source = local(tensors[piece.name])
            assert source.shape == target.shape, f"{piece.name}: {tuple(source.shape)}, planned {piece.shape}"
            target.copy_(source, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class _Running:
    """The save under way: a thread, and the result that it leaves."""

    def __init__(
        self, save: Save, buffer: torch.Tensor, group: dist.ProcessGroup | None, *, step: int, stall_s: float
    ) -> None:
        self.result: SaveResult | None = None
        self._save, self._buffer, self._group = save, buffer, group
        self._step, self._stall_s = step, stall_s
        # A daemon: when training ends by an error, nobody waits for a save; what it leaves is hidden.
        self.thread = threading.Thread(target=self._run, name=f"saving step {step}", daemon=True)

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own, and those that it starts inherit it
            thread = threading.get_native_id()
            setpriority(PRIO_PROCESS, thread, min(19, getpriority(PRIO_PROCESS, thread) + _NICER))
        started_at = time.perf_counter()
        error = None
        try:
            write_checkpoint(self._save, lambda: _blocks(self._buffer, self._save.plan.pieces), self._group)
        except ConfigError as failure:
            error = str(failure)
        except Exception as failure:  # a defect of ours, or this process is ending
            if threading.main_thread().is_alive():
                traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
        mine = _Figures(self._stall_s, time.perf_counter() - started_at, self._written_bytes())
        try:
            figures = exchange(mine, self._group)
        except PeerLost as lost:
            figures, error = [mine], error or str(lost)
        self.result = SaveResult(
            step=self._step,
            path=None if error else self._save.final,
            error=error,
            stall_s=max(f.stall_s for f in figures),
            write_s=max(f.write_s for f in figures),
            bytes=sum(f.bytes for f in figures),
            each_its_own=self._save.each_its_own,
        )

    def _written_bytes(self) -> int:
        leads = bool(self._save.plan.file_bytes)
        return self._save.size_bytes if leads else 0


@dataclass(frozen=True)
class _Figures:
    stall_s: float
    write_s: float
    bytes: int


def _blocks(buffer: torch.Tensor, pieces: tuple[Piece, ...]) -> ShardBytes:
    data = buffer.numpy().data[: sum(piece.size_bytes for piece in pieces)]
    for start in range(0, len(data), _BLOCK_BYTES):
        yield data[start : start + _BLOCK_BYTES]


def _host_memory(size_bytes: int, *, pinned: bool) -> torch.Tensor:
    """Memory that is really there: no page is faulted in while training waits, and a device can copy straight to it.

    Registered with CUDA rather than allocated by torch, whose pinned memory comes in powers of two.
    """
    buffer = torch.empty(size_bytes, dtype=torch.uint8)
    buffer.zero_()
    if pinned and size_bytes:
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(cudart.cudaHostRegister(buffer.data_ptr(), size_bytes, 0)) == 0:
            weakref.finalize(buffer, cudart.cudaHostUnregister, buffer.data_ptr())
        else:  # copies are slower then; CUDA keeps the refusal for the next kernel, which is not to be one of training
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda")
    return buffer
