"""What holds for all tests, and what those of several folders need."""

import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LONG_FILES = (
    "test_deepspeed.py",
    "test_engines.py",
    "test_flat.py",
    "test_megatron_core.py",
    "test_document_mask.py",
    "test_dry_run.py",
    "test_layouts.py",
    "test_reward_layouts.py",
    "test_named_gradients.py",
    "test_recomputation.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked `gpu` where torch finds none: a skip of each would hide those of a missing package.

    Begin with the files that take minutes, then tests/parallel: started last, they would leave workers idle."""
    of_a_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_a_gpu and not has_gpu():
        config.hook.pytest_deselected(items=of_a_gpu)
        items[:] = [item for item in items if item not in of_a_gpu]
    root = Path(__file__).parent
    items.sort(key=lambda item: (item.path.name not in LONG_FILES, "parallel" not in item.path.relative_to(root).parts))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what the imports of all tests have made from garbage collections, each of which would visit it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Torch in this process has one thread, as each rank of the tests has: small matrices only lose by being shared
    out, and other numbers of threads give other bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_wandb_process():
    """W&B leaves the address of its process in the environment: later runs would record through that of this test."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session")
def tabular():
    """tests/gpt/post_training/analysis/tabular_policy.py as a module: a policy that trains in a second."""
    path = Path(__file__).parent / "gpt" / "post_training" / "analysis" / "tabular_policy.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """small_disk(size_bytes, place=tmp_path / "disk"): a file system of its own of that size in the folder `place`,
    which is returned; once more on the same place, and it gets another size. Skips where mounting is not allowed."""
    mounted: list[Path] = []

    def make(size_bytes: int, place: Path = tmp_path / "disk") -> Path:
        if place in mounted:
            subprocess.run(["mount", "-o", f"remount,size={size_bytes}", place], check=True)
            return place
        place.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine does not let us mount a tmpfs: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:  # lazily, as a process that is ending may have a file open
        subprocess.run(["umount", "--lazy", place], check=True)
