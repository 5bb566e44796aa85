"""The wheel holds what a user needs outside a checkout: packages, recipes, the licence, and `triaxial` in two forms."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import triaxial

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gpt", "parallel", "data_prep", "launch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # a build writes into its sources
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("slurm", "docs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "triaxial.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([*pip, source / "dist", source], check=True, capture_output=True, timeout=200)
    (found,) = (source / "dist").glob("*.whl")
    return found


def test_it_holds_every_module_and_recipe_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "launch/recipes").glob("*.toml")}
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*/assets/*")}
    tables = [path for kind in ("toml", "csv") for path in (ROOT / "parallel").rglob(f"*.{kind}")]
    tables += (ROOT / "gpt").rglob("*.toml")
    assets |= {str(path.relative_to(ROOT)) for path in tables} | {f"{package}/py.typed" for package in PACKAGES}
    assert modules | recipes | assets | {"triaxial.py"} <= names
    rest = {name for name in names - modules - recipes - assets if ".dist-info/" not in name}
    files = [path for folder in ("slurm", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    shipped = {f"share/triaxial/{path.relative_to(ROOT)}" for path in files}
    found = {name.partition(".data/data/")[2] or name for name in rest}
    assert found == {"triaxial.py", "triaxial-stubs/__init__.pyi"} | shipped
    assert [name for name in names if name.endswith("licenses/LICENSE")]


@pytest.mark.timeout(200)
def test_a_type_checker_sees_the_types_of_the_library(wheel, tmp_path):
    """In an environment of its own: a module outside a package needs stubs for its types (PEP 561)."""
    pytest.importorskip("mypy", reason="the extra 'dev' is not installed")
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "program.py").write_text(
        "import triaxial\n\n"
        'model = triaxial.load("runs/demo")\n'
        'text: int = model.generate("Once", max_new_tokens=3)\n'
        'run = triaxial.train("model.toml", step=1)\n'
    )
    words = ["--strict", "--cache-dir", tmp_path / "cache", "--python-executable", tmp_path / "env/bin/python"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, "program.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if re.match(r"program.py:\d+: error: ", line)]
    assert 'expression has type "str", variable has type "int"' in said[0], done.stdout + done.stderr
    assert 'Unexpected keyword argument "step" for "train"' in said[1]
    assert len(said) == 2


def test_the_stubs_have_the_names_of_the_library():
    stubs = (ROOT / "launch/library/stubs/triaxial-stubs/__init__.pyi").read_text()
    (names,) = re.findall(r"^__all__ = \[(.*?)\]", stubs, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r'"(\w+)"', names) == triaxial.__all__
    assert set(re.findall(r"import (\w+) as \1$", stubs, flags=re.MULTILINE)) == {*triaxial.__all__} - {"__version__"}


@pytest.mark.timeout(200)
def test_it_works_outside_the_checkout(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "there", wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=100)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}

    def output(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = output(sys.executable, "-c", "import triaxial, launch; print(triaxial.__file__, launch.__file__)")
    assert where.split() == [str(tmp_path / "there" / name) for name in ("triaxial.py", "launch/__init__.py")]
    module = (sys.executable, "-m", "triaxial")
    version = output(*module, "--version")
    assert output(tmp_path / "there/bin/triaxial", "--version") == version
    assert "[model]" in output(*module, "config", "gpt3_125m")
    shared = tmp_path / "there" / "share" / "triaxial"
    assert f"documentation: {shared}/docs\nbatch scripts: {shared}/slurm; " in output(*module, "docs")
    assert output(*module, "docs", "first_model") == (ROOT / "docs/tutorials/first_model.md").read_text()
