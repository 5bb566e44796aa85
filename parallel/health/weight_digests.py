"""Compute digests of whole weights, with which ranks of different layouts compare their models."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch

from parallel.axes.gradients import whole


@torch.no_grad()
def weight_digests(parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Return the SHA-256 of the bits of each weight of this stage, by canonical name. Collective over its ranks.

    Torch gathers each weight by its own record of the shards, which is independent of the one that initialisation uses.
    Memory: one whole weight at a time.
    """
    return {name: digest(whole(p)) for name, p in parameters}


def model_digest(of_ranks: Iterable[Mapping[str, str]]) -> str:
    """Combine the digests of all ranks into one. Unequal replicas of a weight change the result too."""
    found = {(name, digest) for digests in of_ranks for name, digest in digests.items()}
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def digest(weight: torch.Tensor) -> str:
    """The SHA-256 of a whole weight's dtype, shape and bits."""
    result = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    result.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()
