"""Choose a model's shape, batch and learning rate from one number, by the table of GPT-3's eight sizes.

The table is 2.1 of arXiv 2005.14165, with the parameters that follow from its shapes. Two rows differ from the printed
one, whose numbers contradict each other: 24 heads for the 1.3B model, and a width of 5140 for the 13B model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

HEAD_WIDTH, WIDE_HEAD = 64, 128  # wide heads from WIDE on, as in the table
WIDE = 2048
MIN_WIDTH = 32
WARMUP_TOKENS, MAX_WARMUP_SHARE = 375_000_000, 0.02  # GPT-3's warm-up; at most this share of a short run
MAX_LEARNING_RATE = 6e-3


@dataclass(frozen=True)
class Size:
    """A row of the table: parameters, shape, tokens of a step, peak learning rate."""

    parameters: float
    n_layers: int
    d_model: int
    n_heads: int
    batch_tokens: int
    learning_rate: float


SIZES = (
    Size(125e6, 12, 768, 12, 524_288, 6.0e-4),
    Size(350e6, 24, 1024, 16, 524_288, 3.0e-4),
    Size(760e6, 24, 1536, 16, 524_288, 2.5e-4),
    Size(1.3e9, 24, 2048, 16, 1_048_576, 2.0e-4),
    Size(2.7e9, 32, 2560, 32, 1_048_576, 1.6e-4),
    Size(6.7e9, 32, 4096, 32, 2_097_152, 1.2e-4),
    Size(13e9, 40, 5120, 40, 2_097_152, 1.0e-4),
    Size(175e9, 96, 12288, 96, 3_145_728, 6.0e-5),
)


def shape_of_depth(n_layers: int, *, vocab_size: int, n_ctx: int) -> ModelConfig:
    """Return the model of this depth: 64 x n_layers wide, in heads of 64. 12 layers are GPT-3 Small."""
    if not 1 <= n_layers <= 96:
        raise ConfigError(f"a depth of {n_layers} layers is invalid: must be from 1 to 96")
    return ModelConfig(
        vocab_size=vocab_size,
        n_ctx=n_ctx,
        n_layers=n_layers,
        d_model=HEAD_WIDTH * n_layers,
        n_heads=n_layers,
    )


def shape_of_parameters(parameters: float, *, vocab_size: int, n_ctx: int) -> ModelConfig:
    """Return the model nearest to this number of parameters, embeddings included.

    GPT-3's shape if one is within 10%. Otherwise a width in steps of 64 (32 below 256, 256 from 2048 on). The layers
    are one for each 64 of the width up to 24, above that as in the table, give or take one, and at least 2. Heads are
    64 wide, 32 in a width that 64 does not divide, and 128 from a width of 2048 on.
    """

    def distance(config: ModelConfig) -> float:
        return abs(math.log(config.parameters / parameters))

    rows = [
        ModelConfig(vocab_size=vocab_size, n_ctx=n_ctx, n_layers=s.n_layers, d_model=s.d_model, n_heads=s.n_heads)
        for s in SIZES
    ]
    best = min(rows, key=distance)
    if distance(best) <= math.log(1.1):
        return best
    shapes = (shape for width in _widths() for shape in _shapes_of_width(width, vocab_size=vocab_size, n_ctx=n_ctx))
    return min(shapes, key=distance)


def peak_learning_rate(parameters: float) -> float:
    """Return the peak learning rate for a model of so many parameters, two digits of it.

    Between two rows of the table the logarithms are interpolated. A smaller or larger model continues the trend of the
    whole table, -0.32 powers of the parameters. No rate is above MAX_LEARNING_RATE.
    """
    first, last = SIZES[0], SIZES[-1]
    trend = math.log(last.learning_rate / first.learning_rate) / math.log(last.parameters / first.parameters)
    if parameters <= first.parameters:
        rate = first.learning_rate * (parameters / first.parameters) ** trend
    elif parameters >= last.parameters:
        rate = last.learning_rate * (parameters / last.parameters) ** trend
    else:
        below, above = next((a, b) for a, b in pairwise(SIZES) if parameters <= b.parameters)
        share = math.log(parameters / below.parameters) / math.log(above.parameters / below.parameters)
        rate = below.learning_rate * (above.learning_rate / below.learning_rate) ** share
    return float(f"{min(rate, MAX_LEARNING_RATE):.1e}")


def warmup_tokens(total_tokens: int) -> int:
    """Return the tokens of the warm-up: GPT-3's 375 million, at most 2% of the run."""
    return min(WARMUP_TOKENS, max(1, round(MAX_WARMUP_SHARE * total_tokens)))


def max_batch_tokens(parameters: float) -> int:
    """Return GPT-3's tokens of a step for the nearest row that is not larger; the first row's for smaller models."""
    return max((s for s in SIZES if s.parameters <= max(parameters, SIZES[0].parameters)), key=_parameters).batch_tokens


def _parameters(size: Size) -> float:
    return size.parameters


def _widths() -> Iterator[int]:
    yield from range(MIN_WIDTH, 256, 32)
    yield from range(256, WIDE, 64)
    yield from range(WIDE, SIZES[-1].d_model + 1, 256)


def _shapes_of_width(width: int, *, vocab_size: int, n_ctx: int) -> Iterator[ModelConfig]:
    n_layers = min(round(width / HEAD_WIDTH), 24)
    if width > WIDE:
        rows = [s for s in SIZES if s.d_model >= WIDE]
        below, above = next((a, b) for a, b in pairwise(rows) if width <= b.d_model)
        share = (width - below.d_model) / (above.d_model - below.d_model)
        n_layers = round(below.n_layers + share * (above.n_layers - below.n_layers))
    head = WIDE_HEAD if width >= WIDE else HEAD_WIDTH if width % HEAD_WIDTH == 0 else MIN_WIDTH
    for layers in range(max(2, n_layers - 1), max(2, n_layers + 1) + 1):
        yield ModelConfig(vocab_size=vocab_size, n_ctx=n_ctx, n_layers=layers, d_model=width, n_heads=width // head)
