"""Digests of whole weights, by which ranks of different layouts see that they hold the same model; changes nothing."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def weight_digests(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, str]:
    """SHA-256 of the bits of each weight of this stage, by canonical name. Collective over the ranks of the stage.

    Each weight is gathered by torch's own account of its shards, not by the one that initialisation used, and let go
    before the next: one whole weight in memory at a time.
    """
    return {name: _digest(_whole(p)) for name, p in parameters}


def model_digest(of_ranks: Iterable[Mapping[str, str]]) -> str:
    """One digest of what all ranks found. A weight of which two ranks hold different copies changes it too."""
    found = {(name, digest) for digests in of_ranks for name, digest in digests.items()}
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return parameter
    on_device = parameter.to(
        parameter.device_mesh.device_type
    )  # NCCL gathers nothing of the host's, where offload has it
    assert isinstance(on_device, DTensor)
    return on_device.full_tensor()


def _digest(weight: torch.Tensor) -> str:
    described = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    described.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return described.hexdigest()
