"""The key of a stage changes with all code and packages that it depends on, and with nothing else."""

import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import data_prep
from data_prep.dedup import exact
from data_prep.execution.fingerprint import Fingerprint, fingerprint, versions
from data_prep.execution.tasks import Stage
from data_prep.extraction.extract import EXTRACT, extract_stage
from data_prep.extraction.page_text import ExtractConfig
from data_prep.filters.language import LANGUAGE, LanguageConfig, language_stage
from data_prep.readers.python_docs import CRAWL

ROOT = Path(data_prep.__file__).parents[1]
NEUTRAL = ("data_prep.execution", "data_prep.reports", "gpt.errors", "gpt.moved")
CHILDREN = {"data_prep.execution.child_frames", "data_prep.execution.child_process"}


def all_stages() -> dict[str, Stage]:
    """Every stage that a module of data_prep defines, by name."""
    found = {}
    for module in pkgutil.walk_packages(data_prep.__path__, "data_prep."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Stage):
                found[value.name] = value
    return found


STAGES = all_stages()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own: write(name, source) writes a module, digests() gives the fingerprint of stage.run."""
    folder = tmp_path / "code" / "own_stages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "own_stages", raising=False)
    monkeypatch.delitem(sys.modules, "own_stages.stage", raising=False)

    def write(name, source):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_text(source)
        os.utime(path, ns=(before + 10**9, before + 10**9))  # two writes may fall into one tick of the file's clock

    write("__init__.py", "")
    write("stage.py", "def run(config, inputs, outputs): ...")
    return write


def found() -> Fingerprint:
    return fingerprint(importlib.import_module("own_stages.stage").run)


def test_every_module_that_any_import_reaches_changes_the_fingerprint(package):
    """Top level, inside a function, relative, by `import_module`, under TYPE_CHECKING, indirectly, and packages."""
    package(
        "stage.py",
        "from typing import TYPE_CHECKING\nimport importlib\nimport own_stages.direct as d\n"
        "from own_stages import listed\nfrom . import near\nfrom .deep.inner import x\n"
        "if TYPE_CHECKING:\n    from own_stages.typed import T\n"
        "def run(config, inputs, outputs):\n    from own_stages.inside import f\n"
        "    importlib.import_module('own_stages.called')\n",
    )
    modules = ["direct.py", "listed.py", "near.py", "typed.py", "inside.py", "called.py", "far.py"]
    modules += ["deep/inner.py", "deep/__init__.py", "__init__.py"]
    for name in modules:
        package(name, "x = 1")
    package("direct.py", "import own_stages.far")
    package("not_imported.py", "x = 1")
    before = found()
    for name in [*modules, "stage.py"]:
        path = Path(sys.modules["own_stages.stage"].__file__).parent / name
        source = path.read_text()
        package(name, f'"""A docstring."""\n\n# a comment\n{source}\n')
        assert found() == before, f"a comment in {name} changes nothing"
        package(name, f"{source}\ny = 2\n")
        assert found() != before, name
        package(name, source)
    package("not_imported.py", "x = 2")
    assert found() == before


def test_an_import_that_is_added_later_counts_from_then_on(package):
    package("later.py", "x = 1")
    assert "own_stages.later" not in found().code
    package("stage.py", "from own_stages.later import x\ndef run(config, inputs, outputs): ...")
    assert "own_stages.later" in found().code


def test_a_file_that_a_child_process_runs_counts(package):
    package("child.py", "x = 1")
    package("stage.py", "FILE = 'child.py'\nNAME = 'data_prep.filters.c4'\ndef run(config, inputs, outputs): ...")
    assert {"own_stages.child", "data_prep.filters.c4"} < found().code.keys()


def test_packages_count_by_version_and_the_standard_library_by_that_of_python(package):
    import numpy as np

    package(
        "stage.py",
        "import numpy.linalg, json\nfrom gpt.errors import import_extra\n"
        "def run(config, inputs, outputs):\n    import_extra('xxhash', extra='data')\n"
        "    import no_such_package_as_this\n",
    )
    assert found().versions == {
        "python": platform.python_version(),
        "no_such_package_as_this": "absent",
        "numpy": np.__version__,
        "xxhash": versions(["xxhash"])["xxhash"],
    }
    run = sys.modules["own_stages.stage"].run
    assert "numpy" not in fingerprint(run, ignored_packages=["numpy"]).versions
    assert "rich" in fingerprint(run, packages=["rich"]).versions
    assert versions(["importlinter"])["importlinter"].startswith("import-linter "), "the package has another name"


def test_no_stage_can_miss_a_module_or_a_package():
    """A fresh interpreter imports the stage's module; each module of ours that this loads is in the fingerprint."""
    assert len(STAGES) >= 30
    code = (
        "import importlib, json, sys\nloaded = {}\nfor name in json.loads(sys.argv[1]):\n"
        "    for module in [m for m in sys.modules if m.partition('.')[0] in ('gpt', 'data_prep')]:\n"
        "        del sys.modules[module]\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = sorted(m for m in sys.modules if m.partition('.')[0] in ('gpt', 'data_prep'))\n"
        "print(json.dumps(loaded))"
    )
    names = sorted({stage.function.__module__ for stage in STAGES.values()})
    command = [sys.executable, "-c", code, json.dumps(names)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    loaded = json.loads(done.stdout)
    for name, stage in STAGES.items():
        counted = stage.fingerprint().code.keys()
        missing = [
            module
            for module in loaded[stage.function.__module__]
            if module not in counted and not (module.startswith(NEUTRAL) and module not in CHILDREN)
        ]
        # What a neutral module imports is loaded too, and stays out unless the stage's own code imports it.
        assert set(missing) <= loaded_by_neutral_rooms(), name


def loaded_by_neutral_rooms() -> set[str]:
    """What every stage module loads because it imports Stage."""
    code = "import data_prep.execution.workspace, data_prep.execution.shard_runs, sys; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return set(done.stdout.split())


def test_child_processes_and_optional_packages_of_the_shipped_stages_are_found():
    extract = EXTRACT.fingerprint()
    assert {"data_prep.extraction.page_child", "data_prep.readers.parquet_child", *CHILDREN} < extract.code.keys()
    assert {"resiliparse", "isal", "brotli", "zstandard", "pyarrow", "xxhash"} < extract.versions.keys()
    assert "data_prep.readers.python_docs_render" in CRAWL.fingerprint().code
    assert {"xxhash", "zstandard", "numpy"} < exact.DIGESTS.fingerprint().versions.keys()


def test_rooms_that_run_stages_and_show_results_do_not_count():
    for name, stage in STAGES.items():
        code = stage.fingerprint().code
        assert {module for module in code if module.startswith(NEUTRAL)} <= CHILDREN, name
        assert not {"gpt", "data_prep"} & code.keys(), "these hold only the error for a module that has moved"


def test_a_choice_of_method_leaves_out_the_library_of_the_other():
    other = extract_stage(ExtractConfig(method="trafilatura")).fingerprint().versions
    assert "trafilatura" not in EXTRACT.fingerprint().versions
    assert {"trafilatura", "lxml", "justext", "courlan", "htmldate"} < other.keys()
    assert "py3langid" not in LANGUAGE.fingerprint().versions
    langid = language_stage(LanguageConfig(detector="langid")).fingerprint().versions
    assert "py3langid" in langid
    assert "pycld2" not in langid


def test_a_stage_of_a_program_has_one_name_in_the_program_and_in_its_workers(tmp_path):
    """The workers know the main module as __mp_main__."""
    (tmp_path / "beside_program.py").write_text("x = 1\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nimport beside_program\nfrom dataclasses import asdict\n"
        "from data_prep.execution.fingerprint import fingerprint\n"
        "from data_prep.execution.workers import LocalWorkers\n"
        "def run(config, inputs, outputs): ...\n"
        "def find(number): return asdict(fingerprint(run))\n"
        "if __name__ == '__main__':\n    workers = LocalWorkers(1)\n"
        "    print(json.dumps([find(0), *(answer for _, answer in workers.run(find, [1]))]))\n    workers.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    here, worker = json.loads(done.stdout)
    assert here == worker
    assert {"program", "beside_program"} <= here["code"].keys()
