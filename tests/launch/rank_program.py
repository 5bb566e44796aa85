"""The program that the launch tests run in each rank instead of training: each behaviour has real signals and exits."""

import os
import signal
import sys
import time
from pathlib import Path

from gpt.errors import ConfigError, DiskFull
from launch.processes.environment import ClusterEnvironment
from launch.processes.error_reports import report_mistake
from launch.processes.failures import SAVED_AFTER_SIGNAL
from launch.processes.rank_process import enter_process, mark_saved


def main(words: list[str]) -> int:
    behaviour, folder = words[0], Path(words[1])
    rank = int(os.environ.get("RANK", "0"))
    try:
        enter_process()
        environment = ClusterEnvironment.from_environment()
        if behaviour == "mistake":
            raise ConfigError("model.d_model = 7 is not divisible by model.n_heads = 2; try 6 or 8")
        if behaviour == "mistake-on-one" and rank == 1:
            raise ConfigError("rank one's disk is full")
        return BEHAVIOURS[behaviour](environment, folder)
    except ConfigError as error:
        report_mistake(str(error), exit_status=error.exit_status)
        return error.exit_status


def show(environment: ClusterEnvironment, folder: Path) -> int:
    """Write this rank's environment to a file, and print to both streams."""
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_MAX_", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    seen = [f"{name}={os.environ.get(name)}" for name in names]
    terminal = [f"isatty={sys.stdout.isatty()}", f"safe_path={sys.flags.safe_path}"]
    fields = [f"{environment}", *seen, *terminal]
    (folder / f"rank{environment.rank}").write_text("\n".join(fields), encoding="utf-8")
    print(f"hello from rank {environment.rank}", flush=True)
    print(f"a warning of rank {environment.rank}", file=sys.stderr, flush=True)
    return 0


def crash(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 raises; the others wait for it as in a collective."""
    if environment.rank == 1:
        raise ValueError("the third tensor is bad")
    time.sleep(60)
    return 0


def killed(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed, as by the kernel when memory runs out."""
    if environment.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return 0


def crash_twice(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 raises in the first start and is killed in the second; each start writes down its restart."""
    (folder / f"start{environment.restart.count if environment.restart else 0}").write_text(str(environment.restart))
    if environment.restart is None:
        return crash(environment, folder)
    return killed(environment, folder) if environment.restart.count == 1 else 0


def mistake_when_restarted(environment: ClusterEnvironment, folder: Path) -> int:
    """A mistake that appears only after the first start has failed, such as a checkpoint of another run."""
    if environment.restart is None:
        return crash(environment, folder)
    raise ConfigError("the recipe has changed meanwhile")


def full_disk(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed in the first start. Rank 0 finds a full disk in as many further starts as the file says."""
    if environment.restart is None:
        return killed(environment, folder)
    starts = folder / f"starts{environment.rank}"
    number = int(starts.read_text()) + 1 if starts.exists() else 1
    starts.write_text(str(number))
    if environment.rank == 0:
        (folder / "cause").write_text(environment.restart.cause)
        if number <= int((folder / "full").read_text()):
            raise DiskFull("/scratch/run: no space left on device; 0 bytes are free")
    return 0


def absent(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed before it writes to the store; the others join."""
    if environment.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def absent_0(environment: ClusterEnvironment, folder: Path) -> int:
    """As `absent`, but rank 0 is killed, which serves the store."""
    if environment.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def killed_joining(environment: ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed after all ranks have started, while the process group is created."""
    import torch.distributed as dist

    if environment.rank == 1:
        dist.init_process_group = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def join(environment: ClusterEnvironment, folder: Path) -> int:
    import torch  # here, because most behaviours do not need torch and start faster without it
    import torch.distributed as dist

    from launch.processes.rendezvous import join_processes

    timeout_s = int((folder / "timeout_s").read_text(encoding="utf-8"))
    join_processes(environment, torch.device("cpu"), timeout_s=timeout_s)
    total = torch.ones(())
    dist.all_reduce(total)
    (folder / f"joined{environment.rank}").write_text(str(int(total)), encoding="utf-8")
    dist.destroy_process_group()
    return 0


def wait(environment: ClusterEnvironment, folder: Path) -> int:
    """Write the process id, then wait for a signal; a stop signal means save and stop, as in the training loop."""
    noted: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda received, _: noted.append(received))
    pid_file = folder / f"pid{environment.rank}"
    pid_file.with_suffix(".new").write_text(str(os.getpid()), encoding="utf-8")
    pid_file.with_suffix(".new").rename(pid_file)
    for _ in range(12_000):  # far longer than any test waits for this process
        if noted:
            (folder / f"signal{environment.rank}").write_text(signal.Signals(noted[0]).name, encoding="utf-8")
            return mark_saved()
        time.sleep(0.05)
    return 1


def leave(environment: ClusterEnvironment, folder: Path) -> int:
    """Leave on a signal without a save, as before the first step."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(SAVED_AFTER_SIGNAL))
    time.sleep(60)
    return 0


def save_slowly(environment: ClusterEnvironment, folder: Path) -> int:
    """As `wait`, but the save lasts until the test creates the file `saved`."""
    status = wait(environment, folder)
    while not (folder / "saved").exists():
        time.sleep(0.05)
    (folder / f"saved{environment.rank}").touch()
    return status


def saved_and_slow(environment: ClusterEnvironment, folder: Path) -> int:
    """All ranks save after a signal. Rank 1 is still shutting down, without handlers, when the launcher ends it."""
    status = mark_saved()
    if environment.rank == 1:
        time.sleep(60)
    return status


BEHAVIOURS = {
    "saved-and-slow": saved_and_slow,
    "show": show,
    "crash": crash,
    "crash-twice": crash_twice,
    "mistake-when-restarted": mistake_when_restarted,
    "killed": killed,
    "full-disk": full_disk,
    "wait": wait,
    "save-slowly": save_slowly,
    "absent": absent,
    "absent-0": absent_0,
    "killed-joining": killed_joining,
    "join": join,
    "mistake": show,
    "mistake-on-one": leave,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
