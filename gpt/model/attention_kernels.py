"""Which of torch's attention kernels a run takes on a GPU: by the GPU's generation, or as the recipe says.

Attention within documents or behind a prefix is FlexAttention's in any case; see gpt/model/attention.py. This module
imports no torch, since every recipe is checked here.
"""

from typing import Literal

from gpt.errors import ConfigError

AttentionKernel = Literal["auto", "cudnn", "flash", "efficient", "math"]
Capability = tuple[int, int]  # of a GPU, as CUDA counts them: (9, 0) is an H100

NAMES = {
    "cudnn": "cuDNN",
    "flash": "FlashAttention",
    "efficient": "memory-efficient attention",
    "math": "plain products",
}
HALF_ONLY = ("cudnn", "flash")
ANY_INPUT = ("efficient", "math")  # they also take fp32, and masks that are tensors
MAX_D_HEAD = 256
# By the first number of the capability. torch's FlashAttention 2 does not use Hopper's and Blackwell's asynchronous
# tensor cores, and cuDNN does. On an A100, FlashAttention is the faster one.
CUDNN_FIRST = (9, 10)


def kernels_for(capability: Capability, kernel: AttentionKernel = "auto") -> tuple[str, ...]:
    """The kernels in the order in which torch tries them on a GPU of this capability.

    A kernel that the recipe names is followed only by those for masks that are tensors, as generation has them.
    """
    if kernel != "auto":
        return tuple(dict.fromkeys((kernel, *ANY_INPUT)))
    fused = ("cudnn", "flash") if capability[0] in CUDNN_FIRST else ("flash", "cudnn")
    return (*fused, *ANY_INPUT)


def check_kernel(
    kernel: AttentionKernel, *, half: bool, d_head: int, shares_heads: bool, segments: bool, deterministic: bool
) -> None:
    """ConfigError if a recipe names a kernel that cannot serve it.

    `half`: it computes in bf16. `shares_heads`: several query heads share a key-value head. `segments`: attention stays
    within documents.
    """
    if kernel == "auto":
        return
    faults = (
        (segments, "attention within documents is FlexAttention's", ""),
        (
            not half and kernel in HALF_ONLY,
            'it computes in bf16 only, and parallel.precision = "fp32"',
            'parallel.precision = "bf16"',
        ),
        (
            kernel in HALF_ONLY and (d_head > MAX_D_HEAD or (kernel == "cudnn" and d_head % 8 != 0)),
            f"it takes a d_head of at most {MAX_D_HEAD}{', a multiple of 8' if kernel == 'cudnn' else ''}, and the "
            f"model's is {d_head}",
            "",
        ),
        (
            kernel == "efficient" and shares_heads and half,
            "query heads that share a key-value head need another kernel in bf16",
            'parallel.attention = "flash"',
        ),
        (
            kernel == "cudnn" and deterministic,
            "its backward is not deterministic, and run.deterministic = true",
            'parallel.attention = "flash"',
        ),
    )
    for broken, rule, use in faults:
        if broken:
            raise ConfigError(
                f'parallel.attention = "{kernel}" is invalid: {rule}. Use {use + " or " if use else ""}'
                'parallel.attention = "auto"'
            )
