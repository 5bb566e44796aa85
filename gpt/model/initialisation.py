"""Starting weights as a pure function of (seed, parameter name, element position), without a random generator.

Every step is a single IEEE operation: an integer hash, then add, multiply, divide and square root in float64. All
devices round these equally. A shard therefore has the bits of the whole tensor at its place, on any layout.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt.model.config import ModelConfig

_CHUNK = 1 << 15  # elements at a time on a CPU, so that the working set stays in a core's cache
_CHUNK_GPU = 1 << 22  # on a GPU: a chunk launches about a hundred kernels, and each needs enough work


@dataclass(frozen=True)
class Start:
    """The starting values of a parameter: normal with this standard deviation, uniform in +-bound, or this constant."""

    std: float = 0.0
    constant: float = 0.0
    bound: float = 0.0


def start_of(name: str, config: ModelConfig) -> Start:
    """GPT-3's rule: weights N(0, init_std), biases 0, normalisation weights 1.

    The standard deviation of projections into the residual stream is divided by sqrt(2 n_layers) (GPT-2's report,
    section 2.3). That of a scalar head is 1 / sqrt(d_model + 1), so that its values start near 1 in size (Stiennon et
    al., arXiv 2009.01325, in their published code). Attention pooling starts with values of 0, if they are linear, and
    with scores near 0 on any width: each mean is near the plain one.
    """
    if name.endswith("bias"):
        return Start(constant=0.0)
    if "norm" in name:
        return Start(constant=1.0)
    if name == "head.value.weight":
        return Start(std=1 / math.sqrt(config.d_model + 1))
    if name == "head.values.weight":
        return Start(constant=0.0)
    if name == "head.query.weight":
        return Start(std=0.5 / math.sqrt(config.d_model))
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        return Start(std=config.init_std / math.sqrt(2 * config.n_layers))
    return Start(std=config.init_std)


def initialise(model: nn.Module, config: ModelConfig, *, seed: int) -> None:
    """Fill every parameter of an unsharded model in place."""
    for name, parameter in model.named_parameters():
        rows = [torch.arange(size, device=parameter.device) for size in parameter.shape]
        fill(parameter.data, name, start_of(name, config), seed=seed, shape=tuple(parameter.shape), indices=rows)


@torch.no_grad()
def fill(out: Tensor, name: str, start: Start, *, seed: int, shape: tuple[int, ...], indices: list[Tensor]) -> None:
    """Fill `out`, a part of the parameter `name` of full shape `shape`, in place.

    `indices[i]`: the indices in the full parameter of the elements along dimension i of `out`. Time and memory grow
    with the part alone. `name` must be the canonical one, so that tied copies start equal.
    """
    if not start.std and not start.bound:
        out.fill_(start.constant)
        return
    if out.numel() == 0:
        return
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little", signed=True)
    rows = torch.zeros(1, dtype=torch.int64, device=out.device)  # of the parameter as a matrix: all but its last axis
    for size, index in zip(shape[:-1], indices[:-1], strict=True):
        rows = (rows[:, None] * size + index).flatten()
    stride, columns = (shape[-1], indices[-1]) if shape else (1, torch.zeros_like(rows))
    flat = out.view(rows.numel(), columns.numel())
    chunk = _CHUNK if out.device.type == "cpu" else _CHUNK_GPU
    rows_at_once = max(1, chunk // columns.numel())
    for i in range(0, rows.numel(), rows_at_once):
        counter = rows[i : i + rows_at_once, None] * stride + columns  # (rows, columns) positions in the full tensor
        values = normal(counter, key) * start.std if start.std else uniform(counter, key) * start.bound
        flat[i : i + rows_at_once] = values.to(out.dtype)


def normal(counter: Tensor, key: int) -> Tensor:
    """Standard normal numbers, float64, one for each int64 counter.

    A 64-bit hash goes through the inverse of the normal distribution (Wichura's algorithm AS 241, 1988, relative
    accuracy 1e-16).
    """
    q = uniform(counter, key) * 0.5
    r = 0.180625 - q * q
    value = q * _horner(r, _CENTRE_TOP) / _horner(r, _CENTRE_BOTTOM)
    tail = (q.abs() > 0.425).nonzero(as_tuple=True)
    value[tail] = _tail(q[tail])
    return value


def uniform(counter: Tensor, key: int) -> Tensor:
    """Numbers uniform on (-1, 1), float64, one for each int64 counter."""
    bits = hash_bits(counter, key) >> 11  # 53 bits, signed
    return (bits.double() + 0.5) * (2.0**-52)


def _tail(q: Tensor) -> Tensor:
    r = (-_log(0.5 - q.abs())).sqrt()
    near = r - 1.6
    far = r - 5.0
    inner = _horner(near, _NEAR_TOP) / _horner(near, _NEAR_BOTTOM)
    outer = _horner(far, _FAR_TOP) / _horner(far, _FAR_BOTTOM)
    return torch.where(r <= 5.0, inner, outer) * q.sign()


def _log(x: Tensor) -> Tensor:
    """Natural logarithm by the series of atanh. torch's own has other last bits in vector code than in scalar code."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent - small.to(exponent.dtype)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    series = _horner(z * z, [2.0 / n for n in range(1, 22, 2)])
    return z * series + exponent.double() * math.log(2.0)


def _horner(x: Tensor, coefficients: list[float]) -> Tensor:
    """c0 + c1 x + c2 x^2 + ..., by separate multiplications and additions: a fused one would round differently."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value.mul_(x).add_(coefficient)
    return value


def hash_bits(counter: Tensor, key: int) -> Tensor:
    """64 random bits for each int64 counter: SplitMix64's output function (Steele, Lea, Flood, 2014) of
    key + counter * golden ratio, wrapping in int64."""
    z = counter * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts copy the sign; the hash needs zeros


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# Coefficients of algorithm AS 241 (PPND16), lowest power first.
_CENTRE_TOP = [
    3.3871328727963666080e0,
    1.3314166789178437745e2,
    1.9715909503065514427e3,
    1.3731693765509461125e4,
    4.5921953931549871457e4,
    6.7265770927008700853e4,
    3.3430575583588128105e4,
    2.5090809287301226727e3,
]
_CENTRE_BOTTOM = [
    1.0,
    4.2313330701600911252e1,
    6.8718700749205790830e2,
    5.3941960214247511077e3,
    2.1213794301586595867e4,
    3.9307895800092710610e4,
    2.8729085735721942674e4,
    5.2264952788528545610e3,
]
_NEAR_TOP = [
    1.42343711074968357734e0,
    4.63033784615654529590e0,
    5.76949722146069140550e0,
    3.64784832476320460504e0,
    1.27045825245236838258e0,
    2.41780725177450611770e-1,
    2.27238449892691845833e-2,
    7.74545014278341407640e-4,
]
_NEAR_BOTTOM = [
    1.0,
    2.05319162663775882187e0,
    1.67638483018380384940e0,
    6.89767334985100004550e-1,
    1.48103976427480074590e-1,
    1.51986665636164571966e-2,
    5.47593808499534494600e-4,
    1.05075007164441684324e-9,
]
_FAR_TOP = [
    6.65790464350110377720e0,
    5.46378491116411436990e0,
    1.78482653991729133580e0,
    2.96560571828504891230e-1,
    2.65321895265761230930e-2,
    1.24266094738807843860e-3,
    2.71155556874348757815e-5,
    2.01033439929228813265e-7,
]
_FAR_BOTTOM = [
    1.0,
    5.99832206555887937690e-1,
    1.36929880922735805310e-1,
    1.48753612908506148525e-2,
    7.86869131145613259100e-4,
    1.84631831751005468180e-5,
    1.42151175831644588870e-7,
    2.04426310338993978564e-15,
]
