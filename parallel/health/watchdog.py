"""Start a monitor process for this rank, and send it each beat. monitor.py is the other side."""

import contextlib
import dataclasses
import faulthandler
import json
import mmap
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from gpt.errors import ConfigError
from gpt.files.machine import boot_id
from gpt.files.temporary import temporary_folder
from gpt.health.watchers import UNWATCHED, Heartbeat
from parallel.agreement import PeerLost, broadcast_object, combine, gather_scatter, rank_in, world_size
from parallel.health import monitor as monitor_module
from parallel.health.config import HealthConfig
from parallel.health.hang_response import STACKS_SIGNAL, response_s
from parallel.health.heartbeat import ALARM_AT, ENDED, FAILED, LOST, RUNNING, SIZE, Beat, write_beat
from parallel.health.process_evidence import process_started_at
from parallel.health.reports import Member, MonitorSettings, by_machine, host_changes

START_MONITOR = f"import sys; sys.path.append(sys.argv[1]); from {monitor_module.__name__} import main; main()"
ROOT = Path(monitor_module.__file__).resolve().parents[monitor_module.__name__.count(".")]  # of the import
LONG_PHASES = ("saving", "rewinding", "sampling", "few_shot")  # one long call between two beats
MONITOR_PAUSE_S = 1.0  # pause before a new monitor replaces a lost one; doubled while new ones end at once
MAX_MONITOR_PAUSE_S = 60.0
MAX_TEMPORARY_LENGTH = 64  # characters; the path of a socket may have 107 at most
OWN_FAULT_WORDS = ("Too many open files", "Cannot allocate memory", "No space left on device")  # not of a peer
LOST_PEER_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


class LostPeers(RuntimeError):
    """The ranks can no longer communicate. The message is one line that says where this rank was."""


@contextlib.contextmanager
def watch_rank(
    config: HealthConfig, run_directory: Path, *, error_file: Path | None = None, host: str | None = None
) -> Iterator[Heartbeat]:
    """Watch this rank by a monitor process while inside. Collective over all ranks of the default process group.

    Reports go to `run_directory`/hangs, which all ranks must share. The time limits of HealthConfig apply between
    beats, from the moment of entering. An error of torch.distributed becomes one LostPeers, after the reports are
    written; other errors pass through. `error_file` is torch elastic's for this rank. `host` names this node in
    verdicts. Linux only: elsewhere, and with health.watchdog = false, nothing is watched.
    """
    if not config.watchdog or sys.platform != "linux":
        yield UNWATCHED
        return
    with contextlib.ExitStack() as stack:
        settings = _monitor_settings(stack, config, run_directory / "hangs", error_file, host or socket.gethostname())
        heartbeat = MonitoredHeartbeat(config, settings)
        try:
            yield heartbeat
        except Exception as error:
            if settings.world_size == 1:  # no other rank needs this one; its process may continue with other work
                heartbeat.stop()
                raise
            heartbeat.kept_open = stack.pop_all()  # the monitor may still ask; this process is about to end
            if lost_peers(error):
                heartbeat.lose(error)
            heartbeat.fail(error)
            raise
        except BaseException:
            heartbeat.stop()
            raise
        heartbeat.stop()


def _monitor_settings(
    stack: contextlib.ExitStack, config: HealthConfig, hangs: Path, error_file: Path | None, host: str
) -> MonitorSettings:
    """Open what the monitor needs, until `stack` closes it. Collective over all ranks."""
    beat_file, stacks_file = (os.memfd_create(name) for name in ("triaxial-beat", "triaxial-stacks"))
    for file in (beat_file, stacks_file):
        stack.callback(os.close, file)
    os.ftruncate(beat_file, SIZE)
    faulthandler.register(STACKS_SIGNAL, file=stacks_file, all_threads=True)
    stack.callback(faulthandler.unregister, STACKS_SIGNAL)
    if not faulthandler.is_enabled():  # if someone enabled it to see crashes, do not change it
        faulthandler.enable(file=stacks_file, all_threads=True)
        stack.callback(faulthandler.disable)
    me = Member(host, _machine(), os.getpid(), process_started_at(os.getpid()))
    members: dict[int, Member] = gather_scatter(lambda: me, by_machine, None, path=hangs)
    hosts = combine(me.host, host_changes, None)
    incarnation = broadcast_object(secrets.token_hex(8), None)
    if rank_in(None) == 0:
        _remove_alarms(hangs)
    return MonitorSettings(
        rank=rank_in(None),
        world_size=world_size(None),
        members=members,
        hosts=hosts,
        incarnation=incarnation,
        hangs=str(hangs.absolute()),
        main_thread=threading.main_thread().ident or 0,
        recorder=stack.enter_context(_flight_recorder()),
        error_file=str(error_file or ""),
        launcher_pid=os.getppid(),
        launcher_started_at=process_started_at(os.getppid()),
        hang_timeout_s=config.hang_timeout_s,
        beat_file=beat_file,
        stacks_file=stacks_file,
    )


class MonitoredHeartbeat:
    """The heartbeat of a rank with a monitor. See gpt.health.watchers.Heartbeat."""

    def __init__(self, config: HealthConfig, settings: MonitorSettings) -> None:
        self.config, self.settings = config, settings
        self.shared = mmap.mmap(settings.beat_file, SIZE)
        self.number, self.step, self.phase = 0, 0, "start_up"
        self.took_s: dict[str, float] = {}  # by phase, the last time
        self.began = time.monotonic()
        self.kept_open: contextlib.ExitStack | None = None  # what the monitor reads from a rank that is about to end
        self.is_over = False
        self.beat(self.phase, 0)
        self.monitor = self._start_monitor()
        threading.Thread(target=self._keep_monitor, daemon=True).start()

    def beat(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if self.number:
            self.took_s[self.phase] = now - self.began
        self.step, self.phase, self.began = step, phase, now
        self._write(RUNNING, self._allowed_s(phase))

    def _allowed_s(self, phase: str) -> float:
        """Twice the time of the last one if that is more than hang_timeout_s: else a slow run could never take two
        steps."""
        if phase in LONG_PHASES:
            return self.config.saving_timeout_s
        longest_s = self.config.first_step_timeout_s
        if phase not in self.took_s:
            return longest_s
        return max(self.config.hang_timeout_s, min(longest_s, 2 * self.took_s[phase]))

    def lose(self, error: BaseException) -> NoReturn:
        """Tell the monitor that the peers are gone, and wait for it to end this process; LostPeers if it does not."""
        alarm_raised, self.is_over = bool(self.shared[ALARM_AT]), True
        self._write(LOST, 0.0, _one_line(error))  # before printing, because printing blocks if our output is not read
        if not alarm_raised:
            print(f"triaxial: {self._lost_words(error)}", file=sys.stderr, flush=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from a launcher that saw a rank die; we are ending anyway
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.monitor.wait(response_s(self.settings.world_size) + 1.0)
            time.sleep(1.0)  # the monitor kills this process last, then ends
        raise LostPeers(self._lost_words(error)) from error

    def fail(self, error: BaseException) -> None:
        """Tell the monitor which error ends this rank, for the peers that will miss it."""
        self.is_over = True
        self._write(FAILED, self.config.hang_timeout_s, f"{type(error).__name__}: {_one_line(error)}")

    def stop(self) -> None:
        """Stop watching, unless the monitor is ending the job already."""
        self.is_over = True
        if self.shared[ALARM_AT]:
            return
        self._write(ENDED, self.config.hang_timeout_s)
        self.monitor.kill()
        self.monitor.wait()

    def _write(self, status: int, allowed_s: float, note: str = "") -> None:
        self.number += 1
        write_beat(self.shared, Beat(self.number, self.step, allowed_s, status, self.phase, note))

    def _lost_words(self, error: BaseException) -> str:
        return f"rank {self.settings.rank} lost its peers at step {self.step:,} ({self.phase}): {_one_line(error)}"

    def _keep_monitor(self) -> None:
        """Replace a killed monitor, also while the main thread waits in a collective.

        Monitors that end at once are replaced after growing pauses, with one warning.
        """
        monitor, pause_s, has_warned = self.monitor, MONITOR_PAUSE_S, False
        while True:
            started_at = time.monotonic()
            monitor.wait()
            if time.monotonic() - started_at > MAX_MONITOR_PAUSE_S:
                pause_s = MONITOR_PAUSE_S
            time.sleep(pause_s)
            if self.is_over or self.shared[ALARM_AT]:
                return
            if pause_s > MONITOR_PAUSE_S and not has_warned:
                has_warned = True
                print(
                    f"triaxial: the monitor of rank {self.settings.rank} ends as soon as it starts (status "
                    f"{monitor.returncode}), so nobody watches this rank; training continues, and the start is tried "
                    "again",
                    file=sys.stderr,
                    flush=True,
                )
            pause_s = min(2 * pause_s, MAX_MONITOR_PAUSE_S)
            with contextlib.suppress(OSError):  # too many files or processes, perhaps: try again
                monitor = self.monitor = self._start_monitor()

    def _start_monitor(self) -> "subprocess.Popen[str]":
        files = (self.settings.beat_file, self.settings.stacks_file)
        # isolated and without site-packages: it starts quickly, whatever the environment holds
        command = [sys.executable, "-I", "-S", "-c", START_MONITOR, str(ROOT)]
        monitor = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=files, text=True)
        assert monitor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            json.dump(dataclasses.asdict(self.settings), monitor.stdin)
            monitor.stdin.close()
        return monitor


def lost_peers(error: BaseException) -> bool:
    """Return whether an error, or a cause of it, comes from torch.distributed: a peer died, or did not answer."""
    seen: BaseException | None = error
    while seen is not None:
        # a ConfigError is the user's mistake, unless it reports a save that failed because a peer died
        if isinstance(seen, ConfigError) and not isinstance(seen.__cause__, PeerLost):
            return False
        if any(word in str(seen) for word in OWN_FAULT_WORDS):
            return False
        if isinstance(seen, (PeerLost, dist.DistError)):
            return True
        if isinstance(seen, RuntimeError) and any(word in str(seen) for word in LOST_PEER_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _flight_recorder() -> Iterator[str]:
    """Open a socket, private to this user, at which torch answers which collectives it recorded. Yield its path, or ""
    if that is not possible."""
    try:
        from torch._C._distributed_c10d import _WorkerServer
    except ImportError:  # not part of torch's public interface
        yield ""
        return
    folder = None if len(tempfile.gettempdir()) < MAX_TEMPORARY_LENGTH else "/tmp"
    with contextlib.ExitStack() as stack:
        try:
            path = f"{stack.enter_context(temporary_folder(folder)).path}/recorder"  # in a folder of mode 0700
            with _quiet_stderr():  # it warns that it listens
                server = _WorkerServer(path)
            os.chmod(path, 0o600)
        except (OSError, RuntimeError):  # such as a full disk: train anyway, with reports that lack the collectives
            yield ""
            return
        try:
            yield path
        finally:
            with _quiet_stderr():
                server.shutdown()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what C code writes to stderr while inside."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _machine() -> str:
    """Return a string that is equal for processes that can signal each other by pid."""
    with contextlib.suppress(OSError):
        if boot := boot_id():
            return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return secrets.token_hex(8)


def _remove_alarms(hangs: Path) -> None:
    """Remove the alarms of earlier starts of the run; keep the reports."""
    with contextlib.suppress(OSError):  # harmless if they stay: the incarnation distinguishes them
        for alarm in hangs.glob(".alarm-*"):
            alarm.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
