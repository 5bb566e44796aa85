"""For tests: a real Slurm controller with two nodes, as processes of this machine in a folder of their own."""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from free_ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "scancel")
WAIT_S = 400.0  # for anything that Slurm does; far longer than it takes, only to end a broken test

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=1 RealMemory=500 Gres=gpu:8
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=1 RealMemory=500 Gres=gpu:8
PartitionName=test Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


@dataclass(frozen=True)
class Slurm:
    """A running controller; commands run with its configuration."""

    folder: Path

    def __call__(self, *command: str, **variables: str) -> str:
        environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), **variables}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{self.logs()}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self("scontrol", "--oneliner", "show", "job", number)))

    def logs(self) -> str:
        parts = [
            f"\n== {path}\n{path.read_text(errors='replace')[-3000:]}"
            for pattern in ("*.log", "triaxial*.out", "triaxial-*/*")
            for path in sorted(self.folder.glob(pattern))
        ]
        return "".join(parts)


def wait_for(condition: Callable[[], object], *, what: str, slurm: Slurm) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s in vain for {what}{slurm.logs()}"
        time.sleep(0.2)


def unavailable(reason: str) -> None:
    """In CI the test must run; elsewhere it may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"no Slurm in CI: {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def running_cluster() -> Iterator[Slurm]:
    """munged, slurmctld and two slurmd as children of this process. Skips the test where they cannot run."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        unavailable(f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))  # a short path: Unix sockets allow 107 characters
    folder.chmod(0o755)  # munged wants a folder that others can enter
    cluster = Slurm(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            start_daemons(cluster, stack, path=path)
        except RuntimeError as error:
            unavailable(f"{error}{cluster.logs()}")
        yield cluster


def start_daemons(cluster: Slurm, stack: contextlib.ExitStack, *, path: str) -> None:
    """Start them and wait until both nodes are idle; RuntimeError if they do not become idle."""
    folder = cluster.folder
    host, user = socket.gethostname(), getpass.getuser()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for number in range(8):
        (folder / f"gpu{number}").touch()  # files that stand for devices; the work itself runs on the CPU
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, user=user, folder=folder, ports=free_ports(3)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # a container may have none
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-7]\n")
    munge = [f"--{kind}={folder}/munge.{kind.removesuffix('-file')}" for kind in ("socket", "key-file", "pid-file")]
    munge += [f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log", "--force", "--foreground"]
    configuration = ["-D", "-f", str(folder / "slurm.conf")]
    commands = [["munged", *munge], ["slurmctld", *configuration]]
    commands += [["slurmd", *configuration, "-N", node] for node in ("n1", "n2")]
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = []
    for command in commands:
        daemon = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        daemons.append(daemon)
        stack.callback(stop, daemon)
        if command[0] == "munged":
            for _ in range(100):
                if (folder / "munge.socket").exists():
                    break
                time.sleep(0.05)
    stack.callback(cancel_all, cluster)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        dead = [command[0] for command, daemon in zip(commands, daemons, strict=True) if daemon.poll() is not None]
        if dead:
            raise RuntimeError(f"{', '.join(dead)} cannot run here")
        with contextlib.suppress(AssertionError):  # the controller does not answer yet
            if cluster("sinfo", "--noheader", "--format=%D %t").split() == ["2", "idle"]:
                return
        time.sleep(0.2)
    raise RuntimeError("the nodes did not come up within 30 s")


def stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def cancel_all(cluster: Slurm) -> None:
    """Kill the processes that a failed test left: a job's processes soon stop being children of the daemons."""
    with contextlib.suppress(AssertionError):
        cluster("scancel", "--user", getpass.getuser(), "--signal=KILL", "--full")
        cluster("scancel", "--user", getpass.getuser())
        for _ in range(50):
            if not cluster("squeue", "--noheader").strip():
                break
            time.sleep(0.2)
