"""For tests: processes of another user reach the ports of runs, and send them a pickle that runs a command.

    python strangers.py FOLDER PORT PORT PORT PORT

Two launchers wait in a rendezvous (torch's own, and ours), and two runs of two ranks for their rank 1 (without and with
a secret). The strangers know the ports only. FOLDER gets a log of each process, `sent-NAME` when the pickle was
sent, and `executed-PID` if process PID unpickled it. Prints the victims as JSON: name -> [process id, exit status]. All
processes are forked here, so that torch is loaded once.
"""

import base64
import json
import os
import pickle
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed import run as torch_run

import launch.torchrun
from launch.processes.environment import ClusterEnvironment
from launch.processes.rendezvous import join_processes
from launch.processes.sealing import new_secret

NOBODY = 65534
WAIT_S = 100


class Command:
    """Unpickling it writes the user id of the process into the file `canary`-PID."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"id -u > {self.canary}-$PPID",)


def wait_for_a_second_node(name, folder, port):
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    options += ["--rdzv-id", new_secret(), "--max-restarts", "0", "--local-addr", "127.0.0.1"]
    if name == "torch":
        torch_run.main(["--rdzv-backend", "c10d", *options, "/bin/true"])
        return 0
    os.environ["TRIAXIAL_JOB_SECRET"] = new_secret()
    return launch.torchrun.main([*options, "/bin/true"])


def overwrite_the_rendezvous(name, folder, port):
    """Its id is random, but the store lists its keys to everybody."""
    store = TCPStore("127.0.0.1", port, None, False, timedelta(seconds=WAIT_S), wait_for_workers=False)
    state = base64.b64encode(pickle.dumps(Command(folder / "executed"))).decode()
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:  # or until the launcher, and with it the store, is gone
        for key in store.list_keys():
            if "torch.rendezvous." in key:
                store.set(key.removeprefix("/"), state)  # the store adds the slash
                (folder / f"sent-{name}").touch()
        time.sleep(0.1)
    return 0


def here(rank, port):
    """A rank as on two nodes of one rank each."""
    return ClusterEnvironment(rank, 0, 2, 1, master_addr="127.0.0.1", master_port=port)


def gather(value):
    """Both ranks' values, by torch's own collective of objects."""
    everyone = [None, None]
    dist.all_gather_object(everyone, value)
    return everyone


def be_rank_0(name, folder, port):
    if name == "sealed":
        os.environ["TRIAXIAL_JOB_SECRET"] = new_secret()
    join_processes(here(0, port), torch.device("cpu"), timeout_s=WAIT_S)
    print("gathered", gather("a value"), flush=True)
    dist.destroy_process_group()
    return 0


def be_rank_1(name, folder, port):
    join_processes(here(1, port), torch.device("cpu"), timeout_s=WAIT_S)
    (folder / f"sent-{name}").touch()
    gather(Command(folder / "executed"))  # the stranger unpickles its own object too
    return 0


def start(role, name, folder, port, *, is_stranger=False):
    """Fork a process for this role; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    log = os.open(folder / f"{role.__name__}-{name}.log", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        if is_stranger and os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        status = role(name, folder, port)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(folder, ports):
    victims, strangers = {}, []
    for name, port in zip(("torch", "ours", "plain", "sealed"), ports, strict=True):
        is_launcher = name in ("torch", "ours")
        victims[name] = start(wait_for_a_second_node if is_launcher else be_rank_0, name, folder, port)
        attack = overwrite_the_rendezvous if is_launcher else be_rank_1
        strangers.append(start(attack, name, folder, port, is_stranger=True))
    ended = {name: [pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] for name, pid in victims.items()}
    for stranger in strangers:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]])
