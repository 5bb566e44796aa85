"""For tests: a process that locks a run directory, as rank 0 of a training run does, until its input ends.

    python holding.py DIRECTORY JOB BEAT_S SILENT_S [MACHINE]

MACHINE: it pretends to run on that machine, whose locks other machines do not see (Lustre or NFS without flock).
"""

import fcntl
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gpt.errors import ConfigError
from launch.processes import run_lock


def hold(directory, job, beat_s, silent_s, machine=None):
    if machine is not None:
        here = run_lock.Owner.here
        run_lock.Owner.here = lambda job_id: replace(here(job_id), machine=machine, host=machine)
        fcntl.lockf = lambda *_: None
    try:
        with ExitStack() as held:
            run_lock.lock(held, Path(directory), job_id=job, beat_s=float(beat_s), silent_s=float(silent_s))
            print("held", flush=True)
            sys.stdin.read()
    except ConfigError as error:
        print(error, flush=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(hold(*sys.argv[1:]))
