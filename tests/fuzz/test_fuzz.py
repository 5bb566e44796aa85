"""Every fuzz target: its fixed seeds in `make test`, new seeds for longer in `make rehearse`. See README.md here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzzing import find_targets, is_missing, replay_command

REPOSITORY = Path(__file__).parents[2]
TARGETS = find_targets()


def run(names: list[str], folder: Path, *arguments: str, timeout: float) -> dict[str, Any]:
    """Run targets in one process, which imports everything once; return their outcomes by name."""
    command = [sys.executable, "tests/fuzz/fuzzing.py", *names, "--json", str(folder / "outcomes.json"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=timeout, capture_output=True, text=True)
    assert (folder / "outcomes.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "outcomes.json").read_text())


def check(name: str, outcome: dict[str, Any]) -> None:
    words = [f"{replay_command(name, int(seed))}\n{text}" for seed, text in outcome["failures"].items()]
    assert not words, f"{len(words)} failures; each replays alone:\n" + "\n".join(words)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fixed seeds of all selected targets, run in one process."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path
    ]
    names = [name for name in dict.fromkeys(names) if not is_missing(TARGETS[name])]
    return run(names, tmp_path_factory.mktemp("fuzz"), timeout=280) if names else {}


@pytest.mark.parametrize("name", TARGETS)
def test_fixed_seeds(name: str, outcomes: dict[str, Any]) -> None:
    if missing := is_missing(TARGETS[name]):
        pytest.skip(f"needs {', '.join(missing)}")
    outcome = outcomes[name]
    check(name, outcome)
    assert outcome["read"] + outcome["refused"] == TARGETS[name].cases
    assert outcome["read"] >= 1, "seed 0, the whole sample, was not read"
    assert outcome["refused"] >= TARGETS[name].cases // 10, (
        "the damage is hardly ever noticed: does it reach the reader?"
    )


@pytest.mark.rehearse
@pytest.mark.parametrize("name", TARGETS)
def test_new_seeds_for_long(name: str, tmp_path: Path) -> None:
    """FUZZ_SECONDS a target; together an hour if it is not set."""
    if missing := is_missing(TARGETS[name]):
        pytest.skip(f"needs {', '.join(missing)}")
    seconds = float(os.environ.get("FUZZ_SECONDS", 3600 / len(TARGETS)))
    # The start takes seconds of processor time, which are many minutes beside programs of a higher priority.
    check(name, run([name], tmp_path, "--seconds", str(seconds), timeout=seconds + 3000)[name])
