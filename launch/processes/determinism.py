"""Make torch give the same bits from run to run, or name the operation that cannot."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt.errors import ConfigError

REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")  # torch's own words, of a RuntimeError


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Inside the block, if `wanted`, torch runs only operations whose bits are the same in every run.

    ConfigError names an operation that has no such implementation. Another layout, thread count or torch version gives
    other bits. Torch fills uninitialised memory with NaN, so that no result can depend on what was there. The previous
    settings of torch are restored. Set cuBLAS and NCCL before, with `environment.make_libraries_deterministic`.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)  # torch.compile obeys too: it does not time kernels to choose one
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        operation = refused_operation(error)
        if operation is None:
            raise
        raise ConfigError(
            f"run.deterministic = true: on {device.type} torch {torch.__version__} has no deterministic implementation "
            f"of {operation}, which this run needs. Change the setting of [model] or [parallel] that needs it, or set "
            f"run.deterministic = false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def refused_operation(error: BaseException) -> str | None:
    """The operation that torch refused to run, if the error or one of its causes is such a refusal; else None."""
    seen: BaseException | None = error
    while seen is not None:
        found = REFUSAL.search(str(seen))
        if found is not None:
            return found[1]
        seen = seen.__cause__ or seen.__context__
    return None


def conditions(device: torch.device) -> str:
    """One line: which torch, layout and hardware the same bits depend on."""
    on = f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads a rank"
    if device.type == "cuda":
        on = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"the same bits from run to run on this layout, with torch {torch.__version__} on {on}"
