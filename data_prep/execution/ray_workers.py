"""Run jobs on a Ray cluster, for work that is too large for one machine.

All machines must see the work folder and the input files under the same paths. Each machine is checked for that.
"""

import contextlib
import logging
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.execution.files import disk_errors
from data_prep.execution.workers import RunningJob, answer, unwrap
from gpt.errors import ConfigError, MachineFault, import_extra

_ATTEMPTS = 4  # machines may leave at any time; a job that ends four workers is the cause itself
_KNOCK_S = 10.0
_HEAD_CHECK_S, _HEAD_LIMIT_S = 5.0, 20.0  # how often to look for the head, and how long it may be away
_PROBE_S = 120.0  # for a machine's first worker to start and look for the probe
_QUEUED_PER_CPU = 2  # so that a free CPU does not wait for us, and an autoscaler sees the demand


@dataclass(frozen=True)
class _Probe:
    """A file in the shared folder and the text it must hold."""

    path: Path
    token: str


class RayWorkers:
    """The workers of the cluster at `address` (None: a new one on this machine, whose files only its owner can open).

    At most `n_workers` jobs run at a time, on one CPU each; None: as many as the cluster has CPUs. All machines must
    share `folder`. Ray's own retries are off: this class sends a lost job again, at most three times.
    """

    def __init__(self, n_workers: int | None, *, folder: Path, address: str | None = None) -> None:
        if n_workers is not None and n_workers < 1:
            raise ConfigError(f"workers = {n_workers} is invalid: must be at least 1")
        self._n_workers = n_workers
        self._folder = folder.resolve()
        self._address = address
        self._ray: Any = None
        self._own_folder: Path | None = None
        self._probe = _Probe(Path(), "")
        self._head_seen, self._head_is_gone = 0.0, False
        self._running: dict[Any, tuple[int, str, float]] = {}  # reference: (job, its name, when it was sent)

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: Callable[[Any], str] = str
    ) -> Iterator[tuple[int, Any]]:
        """As `Executor.run`; `function` must be importable by name on every machine."""
        if not jobs:
            return
        ray = self._connect()
        remote = ray.remote(num_cpus=1, max_retries=0)(_answer_where_shared)
        waiting = deque(range(len(jobs)))
        attempts: dict[int, int] = {}
        while waiting or self._running:
            self._check_head()
            limit = self._limit()
            while waiting and len(self._running) < limit:
                index = waiting.popleft()
                reference = remote.remote(self._probe, function, jobs[index])
                self._running[reference] = (index, name(jobs[index]), time.monotonic())
            for reference in self._ready():
                index, said, _ = self._running.pop(reference)
                lost, outcome = self._get(reference, said)
                if lost is None:
                    yield index, unwrap(outcome)
                    continue
                attempts[index] = attempts.get(index, 0) + 1
                if attempts[index] == _ATTEMPTS:
                    raise ConfigError(f"{said}: its Ray worker was lost {_ATTEMPTS} times, the last time by {lost}")
                waiting.appendleft(index)

    def longest(self) -> RunningJob | None:
        """As `Executor.longest`; the time includes the wait in Ray's queue."""
        running = list(self._running.values())
        if not running:
            return None
        _, name, sent = min(running, key=lambda job: job[2])
        return RunningJob(name, time.monotonic() - sent, "Ray, time in its queue included")

    def close(self) -> None:
        """Leave the cluster; Ray ends our jobs that still run there."""
        if self._ray is not None:
            self._running.clear()
            if not self._head_is_gone:  # else it would wait for the head
                self._ray.shutdown()
            self._ray = None
            self._probe.path.unlink(missing_ok=True)
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def _connect(self) -> Any:
        """Join the cluster, once, and check that all its machines share the folder."""
        if self._ray is not None:
            return self._ray
        ray = import_extra("ray", extra="ray")
        if ray.is_initialized():
            raise ConfigError("this process is in a Ray cluster already. Leave it first with ray.shutdown()")
        if self._address not in (None, "auto"):
            _knock(self._address)
        where = {"address": self._address} if self._address is not None else self._new_cluster()
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ConfigError(_cannot_join(self._address, _first_line(error))) from None
        self._ray = ray
        token = uuid.uuid4().hex  # also in the name, so that no machine can have cached that the file is missing
        self._probe = _Probe(self._folder / f".ray-probe-{token}", token)
        with disk_errors(self._probe.path):
            self._probe.path.write_text(token, encoding="utf-8")
        self._look_from_every_machine()
        return ray

    def _new_cluster(self) -> dict[str, Any]:
        """Arguments of ray.init. Ray opens its folder and the sockets in it to all users, so it gets a private parent.

        The name must be short, because a socket's path may have 107 characters: TMPDIR could be too long.
        """
        self._own_folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
        return {"address": "local", "include_dashboard": False, "_temp_dir": str(self._own_folder / "ray")}

    def _look_from_every_machine(self) -> None:
        ray = self._ray
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        looks = {}
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1:
                where = pinned(node["NodeID"], soft=False)
                looks[look.options(scheduling_strategy=where).remote(self._probe)] = _node_name(node)
        if not looks:
            raise ConfigError(
                "--executor ray: no machine of the cluster has a CPU for us. Start Ray there with --num-cpus"
            )
        done, _ = ray.wait(list(looks), num_returns=len(looks), timeout=_PROBE_S)
        for reference, node in looks.items():
            if reference not in done:
                raise ConfigError(f"Ray's node {node} did not answer within {_PROBE_S:.0f} s. Look at its Ray logs")
            lost, sees = self._get(reference, f"a first look from Ray's node {node}")
            if lost is None and not sees:
                raise ConfigError(_not_shared(node, self._probe))

    def _limit(self) -> int:
        if self._n_workers is not None:
            return self._n_workers
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)) * _QUEUED_PER_CPU)

    def _ready(self) -> list[Any]:
        """Wait for one answer, and return all that have arrived."""
        references = list(self._running)
        while not self._ray.wait(references, num_returns=1, timeout=_HEAD_CHECK_S)[0]:
            self._check_head()
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        return list(ready)

    def _check_head(self) -> None:
        """MachineFault: nothing has answered at the head's address for a while. Ray would end this process at 60 s."""
        now = time.monotonic()
        if now - self._head_seen < _HEAD_CHECK_S:
            return
        address = self._ray.get_runtime_context().gcs_address
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=_HEAD_CHECK_S).close()
                self._head_seen = time.monotonic()
                return
            except OSError as error:
                if time.monotonic() - now > _HEAD_LIMIT_S:
                    why = error.strerror or type(error).__name__
                    self._head_is_gone = True
                    raise MachineFault(
                        f"the head of the Ray cluster at {address} has gone ({why}). Start the cluster again, and run "
                        "the same command: finished work is kept"
                    ) from None
                time.sleep(1.0)

    def _get(self, reference: Any, name: str) -> tuple[str | None, Any]:
        """Return (None, the remote function's value), or (why there is no answer, None)."""
        errors = self._ray.exceptions
        try:
            return None, self._ray.get(reference)
        except errors.RayTaskError as error:  # the job itself never began: its own errors come back as answers
            missing = re.search(r"No module named '[^']+'", str(error))
            if missing is not None:
                raise ConfigError(
                    f"{name}: {missing[0]} on one of Ray's machines. Install this version of Triaxial with its extras "
                    "on all of them"
                ) from None
            raise RuntimeError(f"a worker failed:\n{error}") from None
        except errors.RayError as error:
            return _first_line(error), None


def _knock(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(
            f"--ray-address {address} is invalid: must be HOST:PORT of the cluster's head, for example 10.0.0.1:6379. "
            "Run this command on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise ConfigError(_cannot_join(address, error.strerror or type(error).__name__)) from None


def _cannot_join(address: str | None, why: str) -> str:
    which = "of this machine" if address is None else f"at {address}"
    return (
        f"--ray-address: cannot join the Ray cluster {which} ({why}). Start one with `ray start --head` and join its "
        "machines with `ray start --address HOST:6379`"
    )


def _look(probe: _Probe) -> bool:
    """Return whether this machine sees the shared folder."""
    with contextlib.suppress(OSError):
        return probe.path.read_text(encoding="utf-8") == probe.token
    return False


def _answer_where_shared(probe: _Probe, function: Callable[[Any], Any], job: Any) -> tuple[str, Any]:
    """Call `answer` if this machine shares the folder; it may have joined after the first check."""
    if not _look(probe):
        return "mistake", _not_shared(socket.gethostname(), probe)
    return answer(function, job)


def _not_shared(node: str, probe: _Probe) -> str:
    return (
        f"output.work = {probe.path.parent} is invalid: Ray's node {node} does not see this folder (no "
        f"{probe.path.name} there). Choose one on a file system that all machines mount at the same path"
    )


def _node_name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
