"""The harness notices each kind of failure, and the same seed does the same damage."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzzing import find_targets, run_case
from mutations import mutate

REPOSITORY = Path(__file__).parents[2]
TARGETS = """
import ctypes, json, os, sys, time
from pathlib import Path
from fuzzing import Target
from gpt.errors import ConfigError

def write(folder):
    (folder / "x.json").write_text(json.dumps({"n": 3, "name": "x"}))

def only(seed_behaviour):
    def read(folder):
        if json.loads((folder / "x.json").read_bytes() or b"0") != {"n": 3, "name": "x"}:
            seed_behaviour()
    return read

def refuse():
    raise ConfigError("no")

def steer():
    sys.stderr.write("\\x1b[2J"); raise ConfigError("no")

def lines():
    raise type("Two", (ConfigError,), {"__str__": lambda _: "a\\nb"})()

def eat():
    bytearray(1 << 33)

def damage(folder, rng):
    (folder / "x.json").write_text("1")
    return ["1"]

TARGETS = tuple(
    Target(name, write, only(behaviour), cases=8, damage=damage)
    for name, behaviour in {
        "refuses": refuse, "raises": lambda: {}["x"], "dies": lambda: os.abort(), "steers": steer, "lines": lines,
        "eats": eat, "exits": sys.exit,
    }.items()
)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("harness")
    (folder / "target_bad.py").write_text(TARGETS)
    words = ("--file", folder / "target_bad.py", "--json", folder / "outcomes.json")
    subprocess.run([sys.executable, "tests/fuzz/fuzzing.py", *words], cwd=REPOSITORY, timeout=200)
    return json.loads((folder / "outcomes.json").read_text())


def test_a_reader_that_refuses_has_no_failures(outcomes: dict) -> None:
    found = {key: outcomes["refuses"][key] for key in ("read", "refused", "failures")}
    assert found == {"read": 1, "refused": 7, "failures": {}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "KeyError: 'x'"),
        ("dies", "the process died, status -6"),
        ("steers", "control characters were printed"),
        ("lines", "not one clear line"),
        ("eats", "MemoryError"),
        ("exits", "SystemExit"),
    ],
)
def test_every_other_end_is_a_failure_of_its_seed(outcomes: dict, name: str, words: str) -> None:
    assert (outcomes[name]["read"], outcomes[name]["refused"]) == (1, 0)
    assert list(outcomes[name]["failures"]) == [str(seed) for seed in range(1, 8)]
    assert all(words in text for text in outcomes[name]["failures"].values())


def test_the_same_seed_does_the_same_damage(tmp_path: Path) -> None:
    content = {"a": [1, 2, {"b": "text"}], "c": {"d": None, "e": 0.5}, "f": True}
    seen = set()
    for seed in range(60):
        found = []
        for name in ("first", "second"):
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            (folder / "x.json").write_text(json.dumps(content))
            changes = mutate(folder, Random(f"t:{seed}"))
            path = folder / "x.json"
            found.append((changes, path.read_bytes() if path.is_file() and not path.is_symlink() else b""))
        assert found[0] == found[1]
        seen.add(found[0][1])
    assert len(seen) > 40


def test_names_are_unique_and_samples_are_read(tmp_path: Path) -> None:
    """The target that costs least: its whole sample is read, as every target's seed 0 is in test_fuzz.py."""
    targets = find_targets()
    target = targets["toml_recipe"]
    (tmp_path / "sample").mkdir()
    target.write(tmp_path / "sample")
    assert run_case(target, tmp_path / "sample", 0) is None
