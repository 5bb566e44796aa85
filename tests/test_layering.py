"""The house rules that a machine can check: arrows of imports, the environment's one reader, no pickle, no drawers."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gpt", "parallel", "data_prep", "launch")
FOLDERS = {*PACKAGES, "slurm", "tests", "benchmarks", "docs", ".ci"}
DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "torch.save"}
FORBIDDEN_ARGUMENTS = {("weights_only", False), ("trust_remote_code", True), ("allow_pickle", True)}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120
    )


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_imports_run_one_way():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_every_arrow_the_wrong_way_is_noticed(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    wrong = {
        "gpt/__init__.py": "import parallel.layout.layout",
        "parallel/__init__.py": "import launch.config.recipe",
        "data_prep/documents/shards.py": "import gpt.model\nimport launch.config.recipe",
    }
    for name, line in wrong.items():
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert "4 broken" in result.stdout, result.stdout


def dotted(node: ast.AST) -> str:
    """`torch.load` for an attribute of a name, "" for what is no such thing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def offences(source: str) -> Iterator[str]:
    """What in this source reads the environment, pickles, or runs what a file says."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [dotted(node)]
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            argument = (node.arg, node.value.value)
            names = [f"{node.arg}={node.value.value}"] if argument in FORBIDDEN_ARGUMENTS else []
        for name in names:
            if "=" in name or name in ENVIRONMENT | FORBIDDEN_CALLS or name.partition(".")[0] in PICKLERS:
                yield name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.environ['A']", ["os.environ"]),
        ("from os import getenv", ["os.getenv"]),
        ("import pickle", ["pickle"]),
        ("import torch\ntorch.load('x', weights_only=False)", ["torch.load", "weights_only=False"]),
        ("from torch import save", ["torch.save"]),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", ["trust_remote_code=True"]),
        ("import os\nos.path.join('a')\nload(weights_only=True)", []),
    ],
)
def test_the_search_finds_what_it_looks_for(source, found):
    assert sorted(offences(source)) == sorted(found)


def test_only_the_cluster_module_reads_the_environment_and_nothing_pickles():
    found = [f"{path.relative_to(ROOT)}: {offence}" for path in sources() for offence in offences(path.read_text())]
    allowed = "launch/processes/environment.py: os.environ"
    assert allowed in found, "the search no longer sees the environment's one reader"
    of_deepspeed = "parallel/zero/setup.py: os.environ"  # it learns its device from LOCAL_RANK alone
    assert [line for line in found if line not in (allowed, of_deepspeed)] == []


def remote_code_calls(source: str) -> Iterator[tuple[str, bool]]:
    """Calls that may run a downloaded folder's code, and whether each forbids it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := dotted(node.func)).endswith((".from_pretrained", ".from_config")):
            yield name, any(k.arg == "trust_remote_code" and dotted(k.value) == "" for k in node.keywords)


def test_every_call_of_transformers_forbids_remote_code():
    """trust_remote_code=True is refused above; left out, transformers asks on standard input."""
    assert list(remote_code_calls("A.from_pretrained(x)\nA.from_config(y, trust_remote_code=False)")) == [
        ("A.from_pretrained", False),
        ("A.from_config", True),
    ]
    found = [call for path in sources() for call in remote_code_calls(path.read_text())]
    assert len(found) >= 4
    assert [name for name, forbids in found if not forbids] == []


def test_every_console_escapes_what_it_prints():
    """Names and notes may be a stranger's; `doctor` prints only facts of this machine."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sources()}
    found = [name for name, text in texts.items() if "rich.console" in text and re.search(r"\bConsole\(", text)]
    assert found == ["launch/commands/doctor.py"]


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert [path for path in sources() if path.name in DRAWERS] == []


def test_every_folder_of_a_package_is_a_package():
    folders = {path.parent for path in sources()}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_top_level_is_as_designed():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, so a user's own folders cannot be told from the project's")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {name.partition("/")[0] for name in listed if "/" in name and (ROOT / name).exists()}
    assert folders - FOLDERS == set()
    assert set(PACKAGES) <= folders


READMES = sorted(
    path.parent.relative_to(ROOT) for folder in sorted(FOLDERS - {".ci"}) for path in (ROOT / folder).rglob("README.md")
)


@pytest.mark.parametrize("folder", READMES, ids=str)
def test_a_readme_is_short_and_names_only_what_is_there(folder):
    text = (ROOT / folder / "README.md").read_text()
    if folder.parts[0] != "docs":  # an index of pages
        assert len(text.splitlines()) <= 40
    named = re.findall(r"`(\w[\w/]*(?:\.(?:py|md|toml|sbatch)|/))`", text)
    here = ROOT / folder
    missing = [
        name for name in named if not ((ROOT / name).exists() or any(here.rglob(name)) or (here / name).exists())
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("rule", "files", "said"),
    [
        ("sizes", {"gpt/long.py": "x = 1\n" * 301}, "gpt/long.py: 301 lines"),
        ("sizes", {"gpt/f.py": "def f():\n" + "    x = 1\n" * 50}, "f has 51 lines"),
        (
            "class_names",
            {"gpt/a.py": "class A: ...", "launch/b.py": "class A: ..."},
            "class A is defined in gpt/a.py and",
        ),
        ("rooms", {f"gpt/room/m{i}.py": "" for i in range(15)}, "gpt/room/: 15 modules; at most 14"),
        ("rooms", {f"gpt/m{i}.py": "" for i in range(6)}, "gpt/: 6 modules; at most 5"),
        ("rooms", {"gpt/room/m.py": ""}, "gpt/room/: no README.md"),
        ("cycles", {"gpt/a.py": "import gpt.b", "gpt/b.py": "from gpt import a"}, "gpt.a -> gpt.b -> gpt.a"),
        (
            "untested",
            {"gpt/room/m.py": "", "tests/gpt/room/test_n.py": "import gpt.room.other"},
            "gpt/room/m.py: no test",
        ),
        ("json_parsers", {"gpt/m.py": "import json\nread = json.loads"}, "gpt/m.py:2: json.loads; use decode_json"),
    ],
)
def test_each_rule_of_the_house_can_fail(rule, files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(said in line for line in getattr(house_rules(), rule)(tmp_path))


def test_a_tested_module_and_imports_inside_functions_break_no_rule(tmp_path):
    files = {
        "gpt/room/a.py": "def f():\n    import gpt.room.b",
        "gpt/room/b.py": "import gpt.room.a",
        "gpt/room/README.md": "# room",
        "tests/gpt/room/test_a.py": "from gpt.room import b",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    rules = house_rules()
    assert [line for rule in rules.RULES for line in rule(tmp_path)] == []


def house_rules():
    spec = importlib.util.spec_from_file_location("house_rules", ROOT / "tests/house_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
