"""requirements.lock has each dependency of pyproject.toml, in its range, pinned and with hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = re.search(r"-e '\.\[(.*)\]'", (ROOT / "Makefile").read_text()).group(1).split(",")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def locked():
    """Version by name, and torch's, which only the first line of the file names."""
    versions = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", LOCK))
    torch = re.search(r"with torch==(\S+)\. ", LOCK.splitlines()[0]).group(1)
    return {canonicalize_name(name): version for name, version in versions.items()} | {"torch": torch}


@pytest.mark.parametrize("group", ["core", *EXTRAS])
def test_the_lock_satisfies_the_ranges(group):
    wanted = PROJECT["dependencies"] if group == "core" else PROJECT["optional-dependencies"][group]
    found = locked()
    for text in wanted:
        requirement = Requirement(text)
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock. Run `make lock`"
        assert requirement.specifier.contains(version), f"{text}: requirements.lock has {version}. Run `make lock`"


def test_every_entry_is_pinned_and_has_hashes():
    entries = re.split(r"(?m)^(?=[A-Za-z])", LOCK.partition("\n\n")[0])[1:]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[\w.-]+==[^\s;]+( ;[^\\]+)? \\\n", entry), entry[:200]
        lines = entry.splitlines()[1:]
        assert lines, entry
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines), entry[:200]
    assert not re.search(r"(?m)^(torch|nvidia-|triton|cuda-)", LOCK), "their build depends on the machine"
