"""For tests: a moderation server as a process, and what a client asks of it."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120


class Served:
    """A server process. `stop` ends it with SIGTERM and returns (exit status, standard output, standard error)."""

    def __init__(self, command):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would fill and stop the server
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        first = self.process.stdout.readline()
        assert "http://" in first, (first, self.read_log())
        self.port = int(first.rstrip().rpartition(":")[2])

    def stop(self):
        self.process.terminate()
        out, _ = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, self.read_log()

    def read_log(self):
        self.log.seek(0)
        return self.log.read()

    def ask(self, path, body=None, *, raw=None, headers=None, connection=None):
        """(status, JSON of the answer, its headers)."""
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        own.request("GET" if data is None else "POST", path, body=data, headers=headers or {})
        answer = own.getresponse()
        found = json.loads(answer.read())
        if connection is None:
            own.close()
        return answer.status, found, answer.headers

    def memory_bytes(self):
        """The memory of the process that is in RAM."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@contextmanager
def served(command):
    server = Served(command)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()
        server.log.close()


def in_threads(count, work):
    """Call work(number) on `count` threads at once; return what each gave."""
    found, faults = {}, []

    def run(number):
        try:
            found[number] = work(number)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    return [found[number] for number in range(count)]
