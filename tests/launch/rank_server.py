"""For tests: one fork server that loads torch once for all launches of a test process.

Each rank is a new process, forked from the server. The server is a program of its own, so ranks inherit nothing from
the tests: no threads, no process groups, no environment variables that a test has set.
"""

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.processes.failures import last_lines
from launch.processes.local_ranks import RankFailed, fork_server, run_ranks
from launch.processes.rank_process import die_with_parent
from parallel.layout.gloo_groups import use_one_gloo_worker

ENVIRONMENT = dict(os.environ)  # when tests are collected
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PRELOAD = [
    "launch.commands.train",
    "launch.training.train_rank",
    "parallel.planner.dry_run",
    "launch.processes.local_ranks",
    "torch._inductor.compile_fx",  # takes longer to load than a small run takes
    "layout_runs",
    "watched_ranks",
]


class RankServer:
    """The program of this file as a process. It ends with the process that started it."""

    def __init__(self, **variables):
        self.log = tempfile.TemporaryFile("a+", prefix="rank_server_")  # noqa: SIM115
        self.connection, theirs = socket.socketpair()
        python_path = os.pathsep.join(map(str, (ROOT, HERE, HERE.parent / "parallel")))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**ENVIRONMENT, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", **variables},
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def run_ranks(self, function, arguments, *, nproc, logs, timeout_s):
        """As `local_ranks.run_ranks`; `function` is "module:name". RankFailed names the rank and shows its output."""
        begins_at = os.fstat(self.log.fileno()).st_size
        request = {"function": function, "arguments": list(map(str, arguments)), "nproc": nproc, "logs": str(logs)}
        self.connection.settimeout(timeout_s)
        try:
            self.connection.sendall(json.dumps(request).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                received = self.connection.recv(1 << 16)
                assert received, f"the server of ranks has ended:\n{self.output(begins_at)}"
                answer += received
        except BaseException:  # also when a time limit of pytest ends this test
            self.kill()
            raise
        if failed := json.loads(answer):
            raise RankFailed(f"{failed}\n{self.output(begins_at)}")

    def output(self, begins_at):
        """The end of the output of rank 0 and of the server, with the thread that crashed first, if one did."""
        self.log.seek(begins_at)
        return "\n".join(last_lines(self.log.read()))

    def kill(self):
        """End the server; its ranks, which are in its session, end too. The next launch starts another server."""
        rank_server.cache_clear()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


@functools.cache
def rank_server(**variables):
    """The server of this test process with these environment variables."""
    return RankServer(**variables)


def call(rank, function, *arguments):
    """The body of a rank."""
    use_one_gloo_worker()  # as the launchers do
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)(rank, *arguments)


def main():
    die_with_parent()
    context = fork_server(PRELOAD)
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            words, failed = [request["function"], *request["arguments"]], ""
            try:
                run_ranks(context, call, words, nproc=request["nproc"], logs=Path(request["logs"]))
            except RankFailed as error:
                failed = str(error)
            lines.write(json.dumps(failed) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
