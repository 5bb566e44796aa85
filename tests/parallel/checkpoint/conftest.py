"""What the tests of this folder share with the programs that they launch."""

import importlib.util
import signal
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cases() -> Any:
    """cases.py beside this file, as a module."""
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).parent / "cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory, cases: Any) -> Path:
    """The folder in which four ranks have saved, until one of them was killed. Tests must not change it."""
    folder = tmp_path_factory.mktemp("four")
    assert cases.run_job("ranks", "four", folder, 4) == [0, 0, 0, -signal.SIGKILL]
    return folder
