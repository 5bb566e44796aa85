"""The result of a part as a JSON file, written whole each time, and the facts of the machine."""

import dataclasses
import json
import math
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from job import ROOT, Check

from gpt.files.atomic import replace_file
from launch.processes.machine_facts import cpu_name

OVER = ("passed", "failed", "error", "time limit", "left out")  # other states are run again by the next call


@dataclass(frozen=True)
class Result:
    """`status`: running, cut short, or one of OVER. `text`: the reason, if it did not just pass."""

    part: str
    title: str
    status: str
    started_at: float
    facts: dict[str, str]
    checks: tuple[Check, ...] = ()
    text: str = ""
    elapsed_s: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if check.passed is False]

    @property
    def headline(self) -> str:
        n = sum(check.passed is not None for check in self.checks)
        good = n - len(self.failures)
        counts = f", {good} of {n} checks" if n else ""
        return f"{self.status}{counts}, {self.elapsed_s:.0f} s{f': {self.text}' if self.text else ''}"

    @property
    def complaints(self) -> list[str]:
        return [f"{c.name}: {c.found:.3g} {c.unit}, allowed {c.at_most:.3g}; {c.note}" for c in self.failures]

    def with_check(self, check: Check) -> "Result":
        return dataclasses.replace(self, checks=(*self.checks, check))

    def ended(self, status: str, text: str, elapsed_s: float) -> "Result":
        return dataclasses.replace(self, status=status, text=text, elapsed_s=elapsed_s)


def result_path(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def write_result(folder: Path, result: Result) -> None:
    replace_file(result_path(folder, result.part), json.dumps(as_json(result), indent=1) + "\n")


def as_json(result: Result) -> dict[str, Any]:
    """JSON has no NaN and no infinity; `found` is then null."""
    checks = [
        {**dataclasses.asdict(c), "found": c.found if math.isfinite(c.found) else None, "passed": c.passed}
        for c in result.checks
    ]
    return {**dataclasses.asdict(result), "checks": checks}


def read_result(folder: Path, part: str) -> Result | None:
    """None if the part was never begun."""
    path = result_path(folder, part)
    if not path.exists():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    checks = tuple(map(read_check, table.pop("checks")))
    return Result(**table, checks=checks)


def read_check(table: dict[str, Any]) -> Check:
    found = math.nan if table["found"] is None else table["found"]
    return Check(**{key: value for key, value in table.items() if key != "passed"} | {"found": found})


def machine_facts(device: str) -> dict[str, str]:
    """The device, the versions and the commit, as short texts."""
    name = f"{cpu_name()}, without a GPU"
    if device == "cuda":
        count = torch.cuda.device_count()
        properties = torch.cuda.get_device_properties(0)
        name = f"{count} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    cuda = torch.version.cuda or "none"
    facts = {"device": name, "torch": torch.__version__, "cuda": cuda, "python": platform.python_version()}
    if device == "cuda":
        facts["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        if torch.distributed.is_nccl_available():
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["cudnn"] = str(torch.backends.cudnn.version())
    facts["commit"] = output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    return facts


def output(*command: str) -> str:
    """The standard output of a program; "" if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
