"""Has torch give the same bits from run to run, or say which operation cannot; decides nothing else about a run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt.errors import ConfigError

REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")  # torch's own words, of a RuntimeError


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Within, where `wanted`, torch runs nothing whose bits may differ from run to run: ConfigError names what it would
    have to. Another layout, number of threads or torch has other bits.

    Memory that nothing has been written to holds NaN, so that no result depends on what was there. torch's settings are
    put back. cuBLAS and NCCL have to be told before, by launch.cluster.make_libraries_deterministic.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)  # also for what torch.compile makes: it times no kernels to choose one
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        operation = refused_operation(error)
        if operation is None:
            raise
        raise ConfigError(
            f"run.deterministic = true: on {device.type} torch {torch.__version__} has no deterministic implementation "
            f"of {operation}, which this run needs; choose another setting of [model] or [parallel] that does not, or "
            f"set run.deterministic = false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def refused_operation(error: BaseException) -> str | None:
    """The operation that torch refused to run, where this or a cause of the error is such a refusal."""
    seen: BaseException | None = error
    while seen is not None:
        found = REFUSAL.search(str(seen))
        if found is not None:
            return found[1]
        seen = seen.__cause__ or seen.__context__
    return None


def conditions(device: torch.device) -> str:
    """What else must be the same for the same bits, in words."""
    on = f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads a rank"
    if device.type == "cuda":
        on = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"the same bits from run to run on this layout, with torch {torch.__version__} on {on}"
