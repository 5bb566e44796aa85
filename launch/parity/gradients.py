"""Digests of gradients, with which layouts and engines compare them: a norm and three seeded projections each.

The loss and the global norm can hide a wrong gradient: AdamW divides a constant factor out, and one parameter of many
changes the norm little. A projection is the sum of a gradient's elements, each times a random number of mean 0 and
variance 1 that the seed, the parameter's name and the element's position determine. Of two gradients, the difference of
their projections is about as large as the norm of their difference.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gpt.model.initialisation import hash_bits
from gpt.training.engine import Engine

PROJECTIONS = 3
BITS = 21  # of the 64 of a hash, for the random number of one projection
CHUNK = 1 << 20  # elements at a time
SAME = 1e-6  # of a gradient's norm: tensor ranks have the same gradient, gathered or added up
FLOOR = 1e-3  # of the norm of all gradients: below this norm, a difference counts relative to it

Digest = list[float]  # the norm, then the projections


@torch.no_grad()
def gradient_digest(name: str, gradient: Tensor, *, seed: int) -> Digest:
    """The digest of a whole gradient, in float64."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/gradient/{name}".encode()).digest()[:8], "little", signed=True)
    flat = gradient.flatten()
    sums = torch.zeros(1 + PROJECTIONS, dtype=torch.float64, device=flat.device)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK].double()
        bits = hash_bits(torch.arange(start, start + part.numel(), device=flat.device), key)
        products = [part @ _uniform(bits >> (BITS * i)) for i in range(PROJECTIONS)]
        sums += torch.stack([part.square().sum(), *products])
    squared, *projections = sums.tolist()
    return [math.sqrt(squared) if squared >= 0 else math.nan, *projections]


def _uniform(bits: Tensor) -> Tensor:
    """Uniform numbers from the lowest BITS bits, with mean 0 and variance 1, float64."""
    return ((bits & ((1 << BITS) - 1)).double() + 0.5 - (1 << (BITS - 1))) * (math.sqrt(12) / (1 << BITS))


def gradient_digests(engine: Engine, *, seed: int) -> dict[str, Digest]:
    """The digests of all parameters by name. Every rank must call it before an optimizer step, and gets all of them."""
    mine = [[name, gradient_digest(name, gradient, seed=seed)] for name, gradient in engine.named_gradients()]
    everyone = engine.all_gather_objects(mine if engine.data_rank == 0 else [])
    return merged((name, digest) for of_rank in everyone for name, digest in of_rank)


def merged(found: Iterable[tuple[str, Digest]]) -> dict[str, Digest]:
    """One digest of each parameter. It is NaN if ranks that hold the same gradient disagree on it."""
    digests: dict[str, Digest] = {}
    for name, digest in found:
        first = digests.setdefault(name, digest)
        if any(abs(a - b) > SAME * first[0] for a, b in zip(first, digest, strict=True)):
            digests[name] = [math.nan] * len(digest)
    return digests


def gradient_differences(digests: Mapping[str, Digest], reference: Mapping[str, Digest]) -> dict[str, float]:
    """How far each gradient is from the reference's, in the reference's order; infinity if only one of them exists.

    The largest difference of norm and projections, relative to the norm of the parameter's gradient. Some gradients
    hold rounding errors only, such as that of a key's bias. The divisor is thus at least FLOOR of the norm of all.
    """
    smallest = FLOOR * math.sqrt(sum(digest[0] ** 2 for digest in reference.values()))
    found = {}
    for name, expected in reference.items():
        if name not in digests:
            found[name] = math.inf
            continue
        differences = [abs(a - b) for a, b in zip(digests[name], expected, strict=True)]
        largest = math.nan if any(map(math.isnan, differences)) else max(differences)
        divisor = max(expected[0], smallest)
        found[name] = largest / divisor if divisor > 0 else (math.inf if largest else 0.0)
    return found | dict.fromkeys(digests.keys() - reference.keys(), math.inf)
