"""The sizes and switches of a GPT, and the counts that follow from them."""

import reprlib
from dataclasses import dataclass
from typing import Literal

from gpt.errors import ConfigError, nearest_divisors

# A file with larger values is damaged or hostile. It would cost memory and time before its tensors can be checked.
# The largest tensor within these limits has 2^58 bytes, which fits torch's 64-bit sizes.
MAX_SIZES = {
    **dict.fromkeys(("vocab_size", "n_ctx"), 2**31),
    "n_layers": 10_000,
    **dict.fromkeys(("d_model", "n_heads", "n_kv_heads"), 2**20),
    **dict.fromkeys(("d_ff", "vocab_multiple"), 2**24),
}


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's extension of rotary positions from `original_n_ctx` to `factor` times as many (arXiv 2407.21783).

    The rule is from its published code. Angles that turn less than `low_frequency` times over the original context are
    divided by `factor`. Angles that turn more than `high_frequency` times stay. Between the two, the divisor changes
    smoothly.
    """

    factor: float
    """How many times longer the context becomes."""
    low_frequency: float = 1.0
    """Angles that turn less often over the original context are divided by `factor`."""
    high_frequency: float = 4.0
    """Angles that turn more often over the original context stay as they are."""
    original_n_ctx: int = 8192
    """Tokens of context that the model was first trained with."""

    def __post_init__(self) -> None:
        if not 1 <= self.factor < float("inf"):
            raise ConfigError(f"model.rope_scaling.factor = {self.factor} is invalid: must be a number of at least 1")
        if not 0 < self.low_frequency < self.high_frequency < float("inf"):
            raise ConfigError(
                f"model.rope_scaling.low_frequency = {self.low_frequency} is invalid: must be above 0 and below "
                f"model.rope_scaling.high_frequency = {self.high_frequency}"
            )
        if not 1 <= self.original_n_ctx <= (largest := MAX_SIZES["n_ctx"]):
            raise ConfigError(
                f"model.rope_scaling.original_n_ctx = {self.original_n_ctx} is invalid: must be from 1 to {largest}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a dense decoder transformer. The defaults are GPT-3's choices (arXiv 2005.14165, section 2.1).

    No count includes the padding of the vocabulary.
    """

    vocab_size: int
    """Number of token ids. It must be at least that of the tokenizer."""
    n_ctx: int
    """Longest sequence in tokens."""
    n_layers: int
    """Number of transformer blocks."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Attention heads of a block. It must divide `d_model`."""
    n_kv_heads: int | None = None
    """Key-value heads; fewer than `n_heads` is grouped-query attention. One per head by default."""
    d_ff: int | None = None
    """Width of the MLP. 4 * d_model by default."""
    positions: Literal["learned", "rope"] = "learned"
    """Learned position embeddings (GPT-3), or rotary ones."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """The normalisation before attention, before the MLP and before the head."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """The MLP: GELU with two matrices, or SwiGLU with three."""
    bias: bool = True
    """Whether linear layers and LayerNorm have biases."""
    tied: bool = True
    """Whether the head uses the weight of the token embedding."""
    norm_eps: float = 1e-5
    """Added to the variance in the normalisation."""
    rope_theta: float = 10_000.0
    """Base of the rotary angles."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's extension of rotary positions to a longer context."""
    init_std: float = 0.02
    """Standard deviation of the starting weights. Layers that write to the residual stream have it divided by sqrt(2 *
    n_layers)."""
    vocab_multiple: int = 128
    """Pads the rows of embedding and head to a multiple of this, for fast products and equal shares on tensor ranks.
    Padding is never predicted."""

    def __post_init__(self) -> None:
        for key, largest in MAX_SIZES.items():
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"model.{key} = {value} is invalid: must be at least 1")
            if value is not None and value > largest:
                raise ConfigError(f"model.{key} = {reprlib.repr(value)} is invalid: must be at most {largest}")
        for key in ("norm_eps", "rope_theta", "init_std"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"model.{key} = {getattr(self, key)} is invalid: must be a number above 0")
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model = {self.d_model} does not divide into model.n_heads = {self.n_heads} heads; "
                f"nearest model.n_heads that do: {nearest_divisors(self.d_model, self.n_heads)}"
            )
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"model.n_heads = {self.n_heads} is not a multiple of model.n_kv_heads = {self.kv_heads}; "
                f"nearest model.n_kv_heads that do: {nearest_divisors(self.n_heads, self.kv_heads)}"
            )
        if self.positions == "rope" and self.d_head % 2:
            raise ConfigError(f"model.positions = 'rope' needs an even head width; d_model / n_heads = {self.d_head}")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ConfigError(f"model.rope_scaling needs model.positions = 'rope', not '{self.positions}'")

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ff_width(self) -> int:
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def block_parameters(self) -> int:
        """Parameters of one transformer block."""
        kv_width = self.kv_heads * self.d_head
        attention = 2 * self.d_model * self.d_model + 2 * self.d_model * kv_width
        mlp = (3 if self.activation == "swiglu" else 2) * self.d_model * self.ff_width
        biases = 0
        if self.bias:
            up = self.ff_width * (2 if self.activation == "swiglu" else 1)
            biases = 2 * self.d_model + 2 * kv_width + up + self.d_model
        return attention + mlp + biases + 2 * self._norm_parameters

    @property
    def _norm_parameters(self) -> int:
        return self.d_model * (2 if self.norm == "layernorm" and self.bias else 1)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, without vocabulary padding. Tied parameters count once."""
        embedding = self.vocab_size * self.d_model
        ends = embedding * (1 if self.tied else 2) + self._norm_parameters
        if self.positions == "learned":
            ends += self.n_ctx * self.d_model
        return self.n_layers * self.block_parameters + ends

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without token and position embeddings and head, as scaling laws count them (arXiv 2001.08361)."""
        return self.n_layers * self.block_parameters + self._norm_parameters

    def train_flops_per_token(self, seq_len: int, *, frozen: bool = False) -> float:
        """Floating-point operations of forward and backward for one token.

        6 per weight in a matrix product, or 4 if the weights are frozen and have no gradient, and 12 n_layers d_model
        seq_len for attention as if it were not causal (PaLM, arXiv 2204.02311, appendix B).
        """
        matrices = self.parameters - (self.n_ctx * self.d_model if self.positions == "learned" else 0)
        if not self.tied:
            matrices -= self.vocab_size * self.d_model  # a look-up is not a matrix product
        return (4.0 if frozen else 6.0) * matrices + 12.0 * self.n_layers * self.d_model * seq_len
