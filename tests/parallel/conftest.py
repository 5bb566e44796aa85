"""The program that trains on many layouts, for the tests that launch it."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def program():
    """tests/parallel/layout_runs.py as a module."""
    spec = importlib.util.spec_from_file_location("layout_runs", Path(__file__).parent / "layout_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
