"""Read damaged files, seed by seed: every reader must answer with a result or with one line of our own errors.

    python tests/fuzz/fuzzing.py TARGET SEED              replay one case, with the damage and the traceback
    python tests/fuzz/fuzzing.py TARGET SEED --keep DIR   the same; the damaged files stay in DIR
    python tests/fuzz/fuzzing.py --list                   the targets
    python tests/fuzz/fuzzing.py TARGET --seconds 60      new seeds for a minute

Each target runs in a separate process, made by fork after the sample is written. A case that kills it, hangs, needs
more than MEMORY_BYTES, prints control characters or raises anything but an allowed error is a failure.
"""

import argparse
import contextlib
import faulthandler
import importlib.util
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # this checkout, whichever one is installed

from mutations import mutate  # noqa: E402

from gpt.errors import ConfigError  # noqa: E402

CASE_S = 60.0  # a case has a few milliseconds of work; times the load of the machine, if others share it
MEMORY_BYTES = 3 << 30
MAX_FAILURES = 10  # of one target; then it stops
MAX_MESSAGE = 30_000
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Target:
    """A reader. `write` puts a valid sample into an empty folder; `read` reads it, damaged or not.

    `allowed`: the errors that `read` may raise, each in one line. `cases`: how many seeds `make test` runs.
    `needs`: optional packages, without which the target is skipped. `damage`: as `mutations.mutate`.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    allowed: tuple[type[BaseException], ...] = (ConfigError,)
    cases: int = 60
    needs: tuple[str, ...] = ()
    damage: Callable[[Path, Random], list[str]] = mutate


@dataclass
class Outcome:
    """The cases that one target ran: how many were read, how many refused, and the failures by seed."""

    read: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    slowest_seed: int = 0
    slowest_s: float = 0.0

    @property
    def cases(self) -> int:
        return self.read + self.refused + len(self.failures)


def find_targets(files: Iterable[Path] = ()) -> dict[str, Target]:
    """The TARGETS of every target_*.py in this folder, or of the given files, by name."""
    found: dict[str, Target] = {}
    for path in files or sorted(HERE.glob("target_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        for target in module.TARGETS:
            assert target.name not in found, f"two targets have the name {target.name}"
            found[target.name] = target
    return found


def is_missing(target: Target) -> list[str]:
    """The packages that the target needs and that are not installed."""
    return [name for name in target.needs if importlib.util.find_spec(name) is None]


# ---- one case --------------------------------------------------------------------------------------------------------


def damaged(target: Target, sample: Path, folder: Path, seed: int) -> list[str]:
    """Copy the sample to `folder` and damage it; seed 0 leaves it whole. Returns what was changed."""
    shutil.copytree(sample, folder, symlinks=True)
    return target.damage(folder, Random(f"{target.name}:{seed}")) if seed else ["no damage"]


def run_case(target: Target, sample: Path, seed: int) -> str | None:
    """Run one case in this process. Returns None if it was read, "" if refused as it should be, else the failure."""
    with tempfile.TemporaryDirectory(prefix="triaxial_fuzz_") as work:
        changes: list[str] = []
        try:
            changes = damaged(target, sample, Path(work) / "sample", seed)
            target.read(Path(work) / "sample")
        except target.allowed as error:
            message = str(error)
            if seed and len(message) < MAX_MESSAGE and "\n" not in message and not _STEERING.search(message):
                return ""
            return f"{'; '.join(changes)}\nnot one clear line: {type(error).__name__}: {message[:2000]!r}"
        except BaseException:
            return f"{'; '.join(changes)}\n{traceback.format_exc()[-6000:]}"
        return None


# ---- many cases, in a separate process -------------------------------------------------------------------------------


def run_target(target: Target, seeds: Iterable[int], *, until: float | None = None) -> Outcome:
    """Run the seeds, or as many of them as there is time for before `until` (time.monotonic)."""
    outcome, waiting = Outcome(), iter(seeds)
    with tempfile.TemporaryDirectory(prefix="triaxial_sample_") as made:
        sample = Path(made) / "sample"
        sample.mkdir()
        target.write(sample)
        while _run_child(target, sample, waiting, outcome, until=until) and len(outcome.failures) < MAX_FAILURES:
            pass
    return outcome


def _run_child(target: Target, sample: Path, seeds: Iterator[int], outcome: Outcome, *, until: float | None) -> bool:
    """Fork a child that runs seeds one by one, as this process names them. True: it died, and seeds may be left."""
    orders, results = os.pipe(), os.pipe()
    stacks = tempfile.TemporaryFile()  # noqa: SIM115  of parent and child
    child = os.fork()
    if child == 0:
        os.close(orders[1])
        os.close(results[0])
        _serve(target, sample, orders[0], results[1], stacks)
    os.close(orders[0])
    os.close(results[1])
    try:
        with os.fdopen(orders[1], "wb", buffering=0) as to_child, os.fdopen(results[0], "rb", buffering=0) as answers:
            for seed in seeds:
                if (until is not None and time.monotonic() > until) or len(outcome.failures) >= MAX_FAILURES:
                    return False
                started_at = time.monotonic()
                to_child.write(b"%d\n" % seed)
                answer = _answer(answers, child)
                elapsed_s = time.monotonic() - started_at
                if elapsed_s > outcome.slowest_s:
                    outcome.slowest_seed, outcome.slowest_s = seed, elapsed_s
                if answer is None:
                    outcome.failures[seed] = _last_words(child, stacks)
                    return True
                if answer.get("failure"):
                    outcome.failures[seed] = answer["failure"]
                outcome.read += answer["read"]
                outcome.refused += answer["refused"]
            return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        stacks.close()


def _answer(answers: object, child: int) -> dict | None:
    """The child's answer to one seed; None if it died or took too long."""
    data, ends_at = b"", time.monotonic() + CASE_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    while not data.endswith(b"\n"):
        left = ends_at - time.monotonic()
        if left <= 0 or not select.select([answers], [], [], left)[0]:
            os.kill(child, signal.SIGUSR1)  # faulthandler writes where it is
            time.sleep(1)
            return None
        more = answers.read(1 << 16)  # type: ignore[attr-defined]
        if not more:
            return None
        data += more
    return json.loads(data)


def _last_words(child: int, stacks) -> str:
    """Why a child gave no answer: the signal that killed it, or where it hangs."""
    done, status = os.waitpid(child, os.WNOHANG)
    deadline = time.monotonic() + 2
    while not done and time.monotonic() < deadline:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
    stacks.seek(0)
    where = stacks.read().decode(errors="replace")[-4000:]
    if done:
        return f"the process died, status {os.waitstatus_to_exitcode(status)}\n{where}"
    return f"no answer in {CASE_S:.0f} s, or longer on a loaded machine\n{where}"


def _serve(target: Target, sample: Path, orders: int, results: int, stacks) -> None:
    """The child: run each seed that comes and answer with a line of JSON; ends with the process."""
    output = tempfile.TemporaryFile()  # noqa: SIM115  until the process ends
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    for line in os.fdopen(orders, "rb"):
        seed = int(line)
        found = run_case(target, sample, seed)
        sys.stdout.flush()
        sys.stderr.flush()
        printed = os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace")
        output.truncate(0)
        os.lseek(output.fileno(), 0, os.SEEK_SET)
        if not found and _STEERING.search(printed.replace("\r", "")):
            found = f"control characters were printed: {printed[:2000]!r}"
        answer = {"read": found is None, "refused": found == "", "failure": found or ""}
        os.write(results, json.dumps(answer).encode() + b"\n")
    os._exit(0)


# ---- command line ----------------------------------------------------------------------------------------------------


def replay_command(target: str, seed: int) -> str:
    """The command that runs one failed case alone."""
    return f"python tests/fuzz/fuzzing.py {target} {seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files by a seed.")
    parser.add_argument("targets", nargs="*", metavar="TARGET [SEED]")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--seconds", type=float, help="new seeds for so long, for each target")
    parser.add_argument("--first-seed", type=int)
    parser.add_argument("--json", type=Path, help="run each target's cases, or --seconds; write the outcomes here")
    parser.add_argument("--file", type=Path, action="append", default=[], help="targets of this file instead")
    args = parser.parse_args()
    targets = find_targets(args.file)
    if args.list:
        print("\n".join(targets))
        return 0
    if len(args.targets) == 2 and args.targets[1].isdecimal():
        return _replay(targets[args.targets[0]], int(args.targets[1]), args.keep)
    outcomes = {}
    for name in args.targets or targets:
        target, started_at = targets[name], time.monotonic()
        if args.seconds is None:
            outcome = run_target(target, range(target.cases))
        else:
            first = time.time_ns() // 10**6 if args.first_seed is None else args.first_seed
            outcome = run_target(target, iter(range(first, 1 << 62)), until=started_at + args.seconds)
        outcomes[name] = asdict(outcome)
        elapsed_s = time.monotonic() - started_at
        print(
            f"{name}: {outcome.cases} cases in {elapsed_s:.1f} s, {outcome.read} read, {outcome.refused} refused, "
            f"{len(outcome.failures)} failures; slowest: seed {outcome.slowest_seed}, {outcome.slowest_s:.1f} s",
            flush=True,
        )
        for seed, words in outcome.failures.items():
            print(f"--- {replay_command(name, seed)}\n{words}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(outcomes))
    return 1 if any(outcome["failures"] for outcome in outcomes.values()) else 0


def _replay(target: Target, seed: int, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="triaxial_sample_") as made:
        sample = Path(made) / "sample"
        sample.mkdir()
        target.write(sample)
        if keep is not None:
            print("; ".join(damaged(target, sample, keep, seed)))
        found = run_case(target, sample, seed)
        folder = Path(made) / "damaged"
        changes = damaged(target, sample, folder, seed)
        print(f"{target.name} {seed}: {'; '.join(changes)}\n{found or ('read' if found is None else 'refused')}")
        if found == "":
            with contextlib.suppress(OSError):
                try:
                    target.read(folder)
                except target.allowed as error:
                    print(f"{type(error).__name__}: {error}")
    return 1 if found else 0


if __name__ == "__main__":
    from fuzzing import main as run  # the module that the targets import, not a second one named __main__

    sys.exit(run())
