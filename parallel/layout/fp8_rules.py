"""The rules of parallel.precision = "fp8"."""

from gpt.errors import ConfigError, nearest_multiples
from gpt.model.config import ModelConfig
from parallel.layout.config import ZERO_BUBBLE, ParallelConfig

TILE = 16  # cuBLAS and torch._scaled_mm take fp8 matrices whose sizes are multiples of it


def check_fp8(parallel: ParallelConfig, model: ModelConfig, *, micro_batch_tokens: int) -> None:
    """ConfigError if the products of this layout cannot be in fp8, or would gain nothing."""
    if parallel.precision != "fp8":
        return
    if model.d_model < parallel.fp8_min_width:
        raise ConfigError(
            f'parallel.precision = "fp8" with model.d_model = {model.d_model} is invalid: below '
            f"{parallel.fp8_min_width}, rounding to fp8 takes more time than its products gain. Use "
            f'parallel.precision = "bf16", or parallel.fp8_min_width = {model.d_model} to do it anyway'
        )
    if parallel.schedule in (*ZERO_BUBBLE, "dualpipev") and parallel.pipeline > 1:
        raise ConfigError(
            f'parallel.schedule = "{parallel.schedule}" with parallel.precision = "fp8" is invalid: an fp8 product '
            f'computes both of its gradients in one step. Use parallel.schedule = "interleaved_1f1b" or "1f1b"'
        )
    heads = model.kv_heads * model.d_head
    for name, width in (
        ("model.d_model", model.d_model),
        ("model.d_ff", model.ff_width),
        (
            "the width of the key-value heads",
            model.d_head * parallel.tensor if model.kv_heads % parallel.tensor else heads,
        ),
    ):
        if width % (TILE * parallel.tensor):
            raise ConfigError(
                f'parallel.precision = "fp8" with parallel.tensor = {parallel.tensor} and {name} = {width} is invalid: '
                f'a rank\'s share must be a multiple of {TILE}. Use parallel.precision = "bf16", or a width of '
                f"{nearest_multiples(TILE * parallel.tensor, width)}"
            )
    if micro_batch_tokens % TILE:
        raise ConfigError(
            f'parallel.precision = "fp8" with {micro_batch_tokens} tokens in a micro-batch (batch.micro_batch_size x '
            f"data.seq_len) is invalid: must be a multiple of {TILE}. Use "
            f"{nearest_multiples(TILE, micro_batch_tokens)}"
        )
