"""Has this rank watched by a process of its own, and tells it of each beat; looks at no other rank, kills nothing."""

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
from gpt.health.watchers import UNWATCHED, Heartbeat
from parallel.agreement import PeerLost, exchange, rank_in
from parallel.health import monitor as hang_monitor
from parallel.health.config import HealthConfig
from parallel.health.evidence import process_started_at
from parallel.health.heartbeat import ALARM_AT, ENDED, FAILED, LOST, RUNNING, SIZE, Beat, write_beat
from parallel.health.monitor import DEPUTY_S, GATHER_S, STACKS_SIGNAL
from parallel.health.reports import Member, Watched

START_MONITOR = "import sys; sys.path.append(sys.argv[1]); from parallel.health.monitor import main; main()"
LONG_PHASES = ("saving", "rewinding", "sampling", "few_shot")  # long calls between two beats
LOOK_AFTER_MONITOR = 16  # so many beats apart
LONGEST_PLACE = 64  # characters; the path of a socket has 107 at most
WORDS_OF_LOST_PEERS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


class LostPeers(RuntimeError):
    """The ranks can no longer talk to each other; one line that says where this one was."""


@contextlib.contextmanager
def watch_rank(config: HealthConfig, run_directory: Path, *, error_file: Path | None = None) -> Iterator[Heartbeat]:
    """While inside, a monitor process watches this rank. Collective over all ranks of the default process group.

    Reports go to `run_directory`/hangs, which all ranks must share. Between beats a rank has the times of HealthConfig,
    from entering on. An error of torch.distributed becomes one LostPeers, after the reports; others pass.
    `error_file`: torch elastic's for this rank. Linux only; elsewhere nobody watches.
    """
    if not config.watchdog or sys.platform != "linux":
        yield UNWATCHED
        return
    hangs = run_directory / "hangs"
    with contextlib.ExitStack() as stack:
        beat_file, stacks_file = (os.memfd_create(name) for name in ("triaxial-beat", "triaxial-stacks"))
        for file in (beat_file, stacks_file):
            stack.callback(os.close, file)
        os.ftruncate(beat_file, SIZE)
        faulthandler.register(STACKS_SIGNAL, file=stacks_file, all_threads=True)
        stack.callback(faulthandler.unregister, STACKS_SIGNAL)
        if not faulthandler.is_enabled():  # else whoever wants to read of a crash reads it elsewhere
            faulthandler.enable(file=stacks_file, all_threads=True)
            stack.callback(faulthandler.disable)
        me = Member(socket.gethostname(), _machine(), os.getpid(), process_started_at(os.getpid()))
        everyone = exchange((dataclasses.astuple(me), secrets.token_hex(8)), None)
        incarnation = everyone[0][1]
        if rank_in(None) == 0:
            _forget_alarms(hangs)
        settings = Watched(
            rank=rank_in(None),
            members=tuple(Member(*member) for member, _ in everyone),
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
        heart = WatchedHeart(config, settings)
        try:
            yield heart
        except Exception as error:
            if len(everyone) == 1:  # nobody misses this rank, and its process may go on with something else
                heart.stop()
                raise
            heart.kept_open = stack.pop_all()  # the monitor may still ask; this process is about to end
            if lost_peers(error):
                heart.lose(error)
            heart.fail(error)
            raise
        except BaseException:
            heart.stop()
            raise
        heart.stop()


class WatchedHeart:
    """The heartbeat of a rank with a monitor. See gpt.health.watchers.Heartbeat."""

    def __init__(self, config: HealthConfig, settings: Watched) -> None:
        self.config, self.settings = config, settings
        self.shared = mmap.mmap(settings.beat_file, SIZE)
        self.number, self.step, self.phase = 0, 0, "start_up"
        self.seen: set[str] = set()
        self.kept_open: contextlib.ExitStack | None = None  # what the monitor asks, of a rank that is about to end
        self.beat(self.phase, 0)
        self.monitor = self._start_monitor()

    def beat(self, phase: str, step: int) -> None:
        first = phase not in self.seen
        if first:
            self.seen.add(phase)
        elif self.number % LOOK_AFTER_MONITOR == 0 and self.monitor.poll() is not None:
            self.monitor = self._start_monitor()
        allowed_s = self.config.first_step_timeout_s if first else self.config.hang_timeout_s
        if phase in LONG_PHASES:
            allowed_s = self.config.saving_timeout_s
        self.step, self.phase = step, phase
        self._write(RUNNING, allowed_s)

    def lose(self, error: BaseException) -> NoReturn:
        """Tell the monitor that the peers are gone, and wait to be ended by it; LostPeers where it does not."""
        told = bool(self.shared[ALARM_AT])
        self._write(LOST, 0.0, _one_line(error))  # first: who reads what we print may not read any more
        if not told:
            print(f"triaxial: {self._lost_words(error)}", file=sys.stderr, flush=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher that saw a rank die asks us to stop: we do
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.monitor.wait(GATHER_S + 2 * DEPUTY_S + 1.0)
            time.sleep(1.0)  # it kills us as the last thing it does
        raise LostPeers(self._lost_words(error)) from error

    def fail(self, error: BaseException) -> None:
        """Tell the monitor what ends this rank, for the peers that will miss it."""
        self._write(FAILED, self.config.hang_timeout_s, f"{type(error).__name__}: {_one_line(error)}")

    def stop(self) -> None:
        """All is well: nobody need watch any more."""
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

    def _start_monitor(self) -> "subprocess.Popen[str]":
        files = (self.settings.beat_file, self.settings.stacks_file)
        root = str(Path(hang_monitor.__file__).resolve().parents[2])
        monitor = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", START_MONITOR, root], stdin=subprocess.PIPE, pass_fds=files, text=True
        )
        assert monitor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            json.dump(dataclasses.asdict(self.settings), monitor.stdin)
            monitor.stdin.close()
        return monitor


def lost_peers(error: BaseException) -> bool:
    """Whether an error is torch.distributed's, itself or as the cause of another: a peer died, or did not answer."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConfigError) and not isinstance(seen.__cause__, PeerLost):  # else a save given up for it
            return False
        ours = isinstance(seen, (PeerLost, dist.DistError))
        if ours or (isinstance(seen, RuntimeError) and any(word in str(seen) for word in WORDS_OF_LOST_PEERS)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _flight_recorder() -> Iterator[str]:
    """A socket, for this user alone, at which torch answers what collectives it has recorded; "" where it cannot."""
    try:
        from torch._C._distributed_c10d import _WorkerServer
    except ImportError:  # not part of torch's public interface
        yield ""
        return
    place = None if len(tempfile.gettempdir()) < LONGEST_PLACE else "/tmp"
    with contextlib.ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="triaxial_", dir=place, ignore_cleanup_errors=True)
            path = f"{stack.enter_context(made)}/recorder"  # in a folder of mode 0700
            with _quiet_stderr():  # it warns that it listens
                server = _WorkerServer(path)
            os.chmod(path, 0o600)
        except (OSError, RuntimeError):  # a full disk, say: reports do without collectives, training goes on
            yield ""
            return
        try:
            yield path
        finally:
            with _quiet_stderr():
                server.shutdown()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """While inside, what C code writes to stderr goes nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _machine() -> str:
    """Processes with the same word here can signal each other by pid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)


def _forget_alarms(hangs: Path) -> None:
    """Remove what earlier starts of the run have left of their alarms; the reports stay."""
    with contextlib.suppress(OSError):  # they are told apart by the incarnation all the same
        for alarm in hangs.glob(".alarm-*"):
            alarm.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
