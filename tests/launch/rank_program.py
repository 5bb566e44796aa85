"""What the launching tests run in each rank in place of training: one behaviour a word, real signals and exits."""

import os
import signal
import sys
import time
from pathlib import Path

from gpt.errors import ConfigError
from launch.processes import environment as cluster


def main(words: list[str]) -> int:
    behaviour, folder = words[0], Path(words[1])
    rank = int(os.environ.get("RANK", "0"))
    try:
        cluster.enter_process()
        environment = cluster.ClusterEnvironment.from_environment()
        if behaviour == "mistake":
            raise ConfigError("model.d_model = 7 is not divisible by model.n_heads = 2; try 6 or 8")
        if behaviour == "mistake-on-one" and rank == 1:
            raise ConfigError("rank one's disk is full")
        return BEHAVIOURS[behaviour](environment, folder)
    except ConfigError as error:
        cluster.report_mistake(str(error))
        return 2


def show(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Leave what this rank sees in a file, and print to both streams."""
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_MAX_", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
    seen = [f"{name}={os.environ.get(name)}" for name in names]
    terminal = [f"isatty={sys.stdout.isatty()}", f"safe_path={sys.flags.safe_path}"]
    fields = [f"{environment}", *seen, *terminal]
    (folder / f"rank{environment.rank}").write_text("\n".join(fields), encoding="utf-8")
    print(f"hello from rank {environment.rank}", flush=True)
    print(f"a warning of rank {environment.rank}", file=sys.stderr, flush=True)
    return 0


def crash(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Rank 1 raises; the others wait for it as in a collective."""
    if environment.rank == 1:
        raise ValueError("the third tensor is bad")
    time.sleep(60)
    return 0


def killed(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed as the kernel does for want of memory."""
    if environment.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return 0


def crash_twice(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Rank 1 raises in the first start and is killed in the second; each start leaves word of what it was told."""
    (folder / f"start{environment.restart.count if environment.restart else 0}").write_text(str(environment.restart))
    if environment.restart is None:
        return crash(environment, folder)
    return killed(environment, folder) if environment.restart.count == 1 else 0


def mistake_when_restarted(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """As when a checkpoint turns out to be another run's: only after the first start has failed."""
    if environment.restart is None:
        return crash(environment, folder)
    raise ConfigError("the recipe has changed meanwhile")


def absent(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed before it gives any sign of itself; the others join."""
    if environment.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def absent_0(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """As `absent`, but it is rank 0, which keeps the store."""
    if environment.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def killed_joining(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Rank 1 is killed when all have met and the process group is being made."""
    import torch.distributed as dist

    if environment.rank == 1:
        dist.init_process_group = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    return join(environment, folder)


def join(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    import torch  # here, since most behaviours do without it and start faster
    import torch.distributed as dist

    from launch.processes import rendezvous as start_up

    timeout_s = int((folder / "timeout_s").read_text(encoding="utf-8"))
    start_up.join_processes(environment, torch.device("cpu"), timeout_s=timeout_s)
    total = torch.ones(())
    dist.all_reduce(total)
    (folder / f"joined{environment.rank}").write_text(str(int(total)), encoding="utf-8")
    dist.destroy_process_group()
    return 0


def wait(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """Say where we are, then wait for a signal; SIGTERM and SIGUSR1 mean save and stop, as in the training loop."""
    noted: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: noted.append(received))
    pid_file = folder / f"pid{environment.rank}"
    pid_file.with_suffix(".new").write_text(str(os.getpid()), encoding="utf-8")
    pid_file.with_suffix(".new").rename(pid_file)
    for _ in range(12_000):  # far longer than any test waits for the end of this process
        if noted:
            (folder / f"signal{environment.rank}").write_text(signal.Signals(noted[0]).name, encoding="utf-8")
            return cluster.leave_word_saved(environment)
        time.sleep(0.05)
    return 1


def save_slowly(environment: cluster.ClusterEnvironment, folder: Path) -> int:
    """As `wait`, but the save goes on until the test says that it is done."""
    status = wait(environment, folder)
    while not (folder / "saved").exists():
        time.sleep(0.05)
    (folder / f"saved{environment.rank}").touch()
    return status


BEHAVIOURS = {
    "show": show,
    "crash": crash,
    "crash-twice": crash_twice,
    "mistake-when-restarted": mistake_when_restarted,
    "killed": killed,
    "wait": wait,
    "save-slowly": save_slowly,
    "absent": absent,
    "absent-0": absent_0,
    "killed-joining": killed_joining,
    "join": join,
    "mistake": show,
    "mistake-on-one": wait,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
