"""Modules that tests of this folder share with the programs that they launch."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases():
    """tests/parallel/checkpoint_cases.py as a module."""
    spec = importlib.util.spec_from_file_location("checkpoint_cases", Path(__file__).parent / "checkpoint_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
