"""Runs contenders alternately, each in a process of its own, and compares them round by round; knows no contender.

A process each, because then nothing of one reaches another: no heap that its neighbour has cut up, no hooks, no cache
of compiled code, no peak memory of somebody else. Only one works at a time; the others wait for a line on their input.
All get the same environment. Round i starts with contender i mod n, so that a machine that slows down favours nobody.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from launch.processes.environment import CPU_MEMORY_SETTINGS


class Contender:
    """A child process that does one block of work when asked; `command` must end in `serve`."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> dict[str, Any]:
        """The next line of the child, ConfigError when it ends instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ConfigError(
                f"the contender '{self.name}' ended with status {self.process.wait()}; what it said is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def block(self) -> dict[str, Any]:
        """Have one block done; what it measured."""
        assert self.process.stdin is not None
        self.process.stdin.write("block\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Let the child finish; it does so when its input ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(build: Callable[[], Callable[[], dict[str, Any]]]) -> None:
    """The child's side: build and warm up, say so, then do a block for each line of input until it ends.

    Each answer holds what the block returned, its `elapsed_s`, its `cpu_s` (of all threads) and `peak_memory_bytes` of
    the process so far. Whatever libraries print goes to the error stream.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    block = build()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        measured = block()
        measured["elapsed_s"] = time.perf_counter() - started_at
        measured["cpu_s"] = time.process_time() - cpu_started_at
        measured["peak_memory_bytes"] = _peak_memory_bytes()
        print(json.dumps(measured), file=answers, flush=True)


def alternate(
    commands: dict[str, list[str]], *, rounds: int, threads: int, report: Callable[[str], None]
) -> list[dict[str, dict[str, Any]]]:
    """Start all, one after the other, then `rounds` rounds of one block each in rotating order; answers by name."""
    environment = {**os.environ, **CPU_MEMORY_SETTINGS, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    contenders: list[Contender] = []
    results = []
    try:
        for name, command in commands.items():
            started_at = time.perf_counter()
            contenders.append(Contender(name, command, environment))
            contenders[-1].answer()
            report(f"{name}: built, compiled and warmed up in {time.perf_counter() - started_at:.0f} s")
        for i in range(rounds):
            turn = i % len(contenders)
            answers = {contender.name: contender.block() for contender in contenders[turn:] + contenders[:turn]}
            results.append(answers)
            spans = ", ".join(f"{name} {answers[name]['elapsed_s']:.2f} s" for name in commands)
            report(f"round {i + 1} of {rounds}: {spans}")
    finally:
        for contender in contenders:
            contender.end()
    return results


def speed_ratios(spans_s: dict[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """How many times as fast as each peer we are: by the medians, and by the rounds' own ratios, median and spread."""
    ratios = {}
    for name, theirs in spans_s.items():
        if name == ours:
            continue
        paired = sorted(b / a for a, b in zip(spans_s[ours], theirs, strict=True))
        ratios[name] = {
            "of_medians": statistics.median(theirs) / statistics.median(spans_s[ours]),
            "paired_median": statistics.median(paired),
            "paired_min": paired[0],
            "paired_max": paired[-1],
        }
    return ratios


def rounded(result: Any) -> Any:
    """The same with its fractions cut to six digits, which is more than a clock tells."""
    if isinstance(result, dict):
        return {key: rounded(value) for key, value in result.items()}
    if isinstance(result, list):
        return [rounded(value) for value in result]
    return float(f"{result:.6g}") if isinstance(result, float) else result


def report_result(measure: Callable[[], dict[str, Any] | None], json_file: Path | None) -> int:
    """A benchmark's ending: the result as one JSON object on the last line, and in a file; None says nothing. A user's
    mistake is one line. Returns the exit status."""
    try:
        result = measure()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if result is not None:
        result = rounded(result)
        print(json.dumps(result), flush=True)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def check_writable(path: Path) -> None:
    """ConfigError, before hours of work, when a result could not be written there."""
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}; name a file in a folder that you may write to") from None


def need_compiler() -> None:
    """ConfigError when torch.compile would not work on this CPU."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"torch.compile needs a C++ compiler, and there is no '{compiler}' here: apt install g++")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ConfigError(
            f"torch.compile needs Python's headers, and there is no {headers}: apt install python{version}-dev"
        )


def processor() -> str:
    """The processor's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _peak_memory_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
