"""Imports of modules that version 0.1 had name the module's new place; nothing else changes for any import."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.moved import MOVES, NAMES

ROOT = Path(__file__).resolve().parents[2]
MOVED = dict(line.split(" ", 1) for line in MOVES.strip().split("\n"))
PACKAGES = {line.split()[0]: line.split()[1:] for line in NAMES.strip().split("\n")}


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_names_the_new_one(old):
    if Path(ROOT, *old.split("."), "__init__.py").exists():
        name = PACKAGES[old][-1]
        with pytest.raises(ModuleNotFoundError, match=f"^{old} is a package since 0.2; import {name} from ") as raised:
            importlib.import_module(f"{old}.{name}")
    else:
        with pytest.raises(ModuleNotFoundError, match=f"^{old} moved to .* in 0.2; import it from there$") as raised:
            importlib.import_module(old)
    assert all(new in str(raised.value) for new in MOVED[old].split(", "))


def test_every_new_module_of_the_table_can_be_imported():
    modules = sorted({new for value in MOVED.values() for new in value.split(", ")})
    assert len(modules) > 200
    done = run("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules))
    assert done.returncode == 0, done.stderr


def test_a_command_of_the_table_still_declares_its_arguments_there():
    """Also where they are in a module of their own, which needs no torch."""
    commands = [value.split(", ") for value in MOVED.values() if value.startswith("launch.commands.")]
    assert len(commands) > 10
    for modules in commands:
        assert any(hasattr(importlib.import_module(name), "add_arguments") for name in modules), modules


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import gpt.train", "gpt.train moved to gpt.training.loop or gpt.training.run in 0.2; import it from there"),
        ("from gpt.train import train", "gpt.train moved to gpt.training.loop"),
        ("from gpt import train", "gpt.train moved to gpt.training.loop"),
        (
            "from gpt.model import GPT",
            "gpt.model is a package since 0.2; import GPT from gpt.model.gpt or gpt.model.rope",
        ),
        ("from gpt.tokenizer import load_tokenizer", "import load_tokenizer from gpt.tokenizer.tokenizers"),
        ("from gpt.token_files import TokenFileWriter", "import TokenFileWriter from gpt.token_files.files"),
        ("from parallel.mesh import make_mesh", "parallel.mesh moved to parallel.layout.mesh"),
        ("from data_prep.minhash import signature", "data_prep.minhash moved to data_prep.dedup.minhash"),
        ("import launch.cluster", "launch.cluster moved to launch.processes.environment"),
    ],
)
def test_a_script_of_version_0_1_fails_with_one_clear_line(line, message):
    done = run(line)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert message in done.stderr.splitlines()[-1]


def test_the_table_of_names_has_each_module_that_is_a_package_now():
    assert set(PACKAGES) == {old for old in MOVED if Path(ROOT, *old.split("."), "__init__.py").exists()}


def test_other_imports_are_as_without_it():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'gpt\.nonsense'$"):
        importlib.import_module("gpt.nonsense")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'nonsense'$"):
        importlib.import_module("nonsense")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'gpt\.model\.nothing'$"):  # 0.1 had no such name
        importlib.import_module("gpt.model.nothing")
    with pytest.raises(ImportError, match=r"^cannot import name 'nothing' from 'gpt\.model'"):
        exec("from gpt.model import nothing")
    assert importlib.util.find_spec("gpt.model.__main__") is None
    assert importlib.util.find_spec("gpt.model.gpt") is not None
    assert not hasattr(importlib.import_module("gpt"), "train")


def test_a_program_that_imports_no_old_module_does_not_load_the_table():
    done = run("import sys, launch.main, parallel, data_prep; sys.exit('gpt.moved' in sys.modules)")
    assert done.returncode == 0, done.stderr
