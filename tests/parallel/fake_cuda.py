"""Fake CUDA tensors on a machine without CUDA: torch's shapes, types and devices are real, and nothing is computed.

A program that uses them starts with LD_PRELOAD=`build(folder)` and calls `pretend` before it builds an engine.
"""

import contextlib
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(str(ROOT / package) for package in ("gpt", "parallel", "launch"))


def build(folder: Path) -> Path:
    """Compile fake_cuda.cpp; a few seconds."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    torch_folder, library = Path(torch.__file__).parent, folder / "libfake_cuda.so"
    words = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
    words += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}", "-o", str(library)]
    subprocess.run([compiler, str(Path(__file__).with_suffix(".cpp")), *words], check=True, timeout=300)
    return library


class FakeStream:
    """A stream or an event: everything is done at once."""

    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, *_: Any) -> "FakeStream":
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def pretend(sites: list[tuple[str, str]]) -> None:
    """Make torch.cuda say that there are GPUs. `sites` collects what `Watch` does: see there."""
    stream, make = FakeStream(), torch.tensor
    answers = dict.fromkeys(("set_device", "synchronize", "set_stream", "set_rng_state", "_lazy_init"))
    answers |= dict.fromkeys(("current_stream", "default_stream"), stream)
    answers |= dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True)
    answers |= {"current_device": 0, "device_count": 8, "get_device_capability": (9, 0), "get_rng_state": None}
    answers |= {"is_current_stream_capturing": False, "stream": contextlib.nullcontext()}
    for name, answer in answers.items():
        setattr(torch.cuda, name, _answering(answer))
    torch.cuda.Stream = torch.cuda.Event = FakeStream  # type: ignore[misc, assignment]
    Tensor.record_stream = _answering(None)  # type: ignore[method-assign]
    Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]

    def tensor(data: Any, *words: Any, device: Any = None, **more: Any) -> Tensor:
        """torch.tensor, which copies a Python value to a GPU with a wait, and has no fake form."""
        made = make(data, *words, **more)
        if device is None or torch.device(device).type != "cuda":
            return made
        sites.append(("copies a Python value to the GPU", site()))
        return torch.zeros(made.shape, dtype=made.dtype, device=device)

    torch.tensor = tensor


def _answering(answer: Any) -> Any:
    """A new function that takes anything: torch's compiler wants a different one behind each name."""
    return lambda *_, **__: answer


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects in `sites` what makes the host wait for the GPU, and in `operators` how often each runs on it."""

    supports_higher_order_operators = True

    def __init__(self, sites: list[tuple[str, str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites, self.operators = sites, Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        name = func.name().partition(".")[0]
        if on_gpu:
            self.operators[name] += 1
            if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
                self.sites.append(("reads from the GPU", site()))
        target = kwargs.get("device")
        if name == "aten::_to_copy" and target is not None and not kwargs.get("non_blocking"):
            if on_gpu and torch.device(target).type == "cpu":
                self.sites.append(("copies from the GPU", site()))
            elif not on_gpu and torch.device(target).type == "cuda":
                self.sites.append(("copies to the GPU with a wait", site()))
        return func(*args, **kwargs)


def site() -> str:
    """The innermost function of ours that runs, as file:function; "torch" if torch calls itself first."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(ROOMS):
            return f"{Path(frame.filename).relative_to(ROOT)}:{frame.name}"
        if "/torch/distributed/pipelining/" in frame.filename:
            return f"torch.distributed.pipelining:{frame.name}"
    return f"{Path(sys.argv[0]).name}"
