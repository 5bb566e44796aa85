"""A bandit for the loop of PPO, and a process group of one rank."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist


@pytest.fixture(scope="module")
def bandit() -> Any:
    """bandit.py of this folder as a module."""
    path = Path(__file__).with_name("bandit.py")
    spec = importlib.util.spec_from_file_location("ppo_bandit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo_bandit"] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
