"""Compare replicas of the same weights and moments on several ranks, bit for bit, by checksums.

Ranks hold replicas of the same part of the same tensor in three cases: weights of data ranks that shard nothing (ZeRO
0, the copies of hybrid sharding), weights that tensor ranks hold whole (norms, some biases and key-value heads), and
the tied embedding on the first and the last stage. A shard of ZeRO exists once: a flipped bit in it reaches all ranks,
and no comparison can find it.
"""

import hashlib
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from parallel.agreement import all_gather_objects
from parallel.axes.gradients import local
from parallel.axes.initialisation import held_indices

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
ROW = 4096  # elements
MAX_NAMED = 4  # mismatches that a message spells out, and ranks of each


@dataclass(frozen=True)
class HeldTensors:
    """A parameter, or the part of one that this rank holds, and the local tensors to compare."""

    key: int  # identifies the parameter's name and the part
    name: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class TensorMismatch:
    """A tensor with unequal replicas: the ranks that hold one, and those outvoted by a majority, if there is one."""

    tensor: str
    ranks: tuple[int, ...]
    odd: tuple[int, ...]


class ReplicaCheck:
    """Finds at construction which ranks hold replicas of what, and compares them at each `compare`.

    All ranks must construct it and call it together. The storages of the tensors must stay the same.

    `parameters`: those of this rank by canonical name, each with the tensors of its shape and sharding to compare.
    `kinds`: a prefix for the name of each of these tensors, in the same order. Communication, from all ranks to all:
    8 bytes per parameter once, and 8 bytes per tensor with a replica elsewhere at each `compare`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor, Sequence[Tensor]]],
        *,
        kinds: Sequence[str],
        device: torch.device,
    ) -> None:
        self.kinds = tuple(kinds)
        self.device = device
        held = [
            HeldTensors(_key(name, parameter), name, tuple(local(tensor) for tensor in tensors))
            for name, parameter, tensors in parameters
            if local(parameter).numel() > 0
        ]
        keys, counts = np.unique(np.concatenate(self._gather_keys([one.key for one in held])), return_counts=True)
        replicated = set(keys[counts > 1].tolist())
        self.held = [one for one in held if one.key in replicated]
        gathered = self._gather_keys([one.key for one in self.held])
        lengths = [len(keys) for keys in gathered]
        self.max_held = max(lengths)  # of any rank: all send as many checksums, padded
        # For each replica, ordered by rank and index: its rank, its index there, and the group of equals it belongs to.
        self.ranks = np.repeat(np.arange(len(gathered)), lengths)
        self.indices = np.concatenate([np.arange(length) for length in lengths])
        _, self.firsts, self.groups = np.unique(np.concatenate(gathered), return_index=True, return_inverse=True)

    @torch.no_grad()
    def compare(self) -> list[TensorMismatch]:
        """Return the mismatches, in the same order on every rank.

        Waits for the device and one small all-gather. A second all-gather, of names, follows only after a mismatch.
        """
        if self.max_held == 0:
            return []
        sums = torch.zeros(self.max_held, len(self.kinds), dtype=torch.int64, device=self.device)
        for index, one in enumerate(self.held):
            sums[index] = torch.stack([checksum(tensor) for tensor in one.tensors])
        found = _all_gather(sums).numpy()[self.ranks, self.indices]  # (replicas, kinds)
        unequal = found != found[self.firsts][self.groups]
        if not unequal.any():
            return []
        replicas, kinds = np.nonzero(unequal)
        wrong = sorted(set(zip(self.groups[replicas].tolist(), kinds.tolist(), strict=True)))
        return self._mismatches(wrong, found)

    def _mismatches(self, wrong: list[tuple[int, int]], found: NDArray[np.int64]) -> list[TensorMismatch]:
        """Describe each (group, kind) in `wrong`. Collective: gathers the names."""
        names = all_gather_objects([one.name for one in self.held], None)
        result = []
        for group, kind in wrong:
            replicas = np.flatnonzero(self.groups == group)
            sums = Counter(found[replicas, kind].tolist())
            common, times = sums.most_common(1)[0]
            odd = self.ranks[replicas[found[replicas, kind] != common]] if 2 * times > len(replicas) else ()
            name = names[self.ranks[replicas[0]]][self.indices[replicas[0]]]
            result.append(TensorMismatch(f"{self.kinds[kind]}{name}", *map(_distinct, (self.ranks[replicas], odd))))
        return result

    def _gather_keys(self, keys: list[int]) -> list[NDArray[np.int64]]:
        """Return the keys of every rank, by rank."""
        lengths = _all_gather(torch.tensor([len(keys)], device=self.device)).flatten().tolist()
        if max(lengths) == 0:
            return [np.zeros(0, dtype=np.int64) for _ in lengths]
        mine = torch.zeros(max(lengths), dtype=torch.int64, device=self.device)
        mine[: len(keys)] = torch.tensor(keys, dtype=torch.int64)
        return [row[:length] for row, length in zip(_all_gather(mine).numpy(), lengths, strict=True)]


def describe(mismatches: Sequence[TensorMismatch]) -> str:
    """Describe the result of `compare` in one sentence. Every rank must call it: it gathers the host names."""
    hosts = all_gather_objects(socket.gethostname(), None)
    texts = [_sentence(mismatch, hosts) for mismatch in mismatches[:MAX_NAMED]]
    more = len(mismatches) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more else "")


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """Return a checksum as a 0-d int64 tensor on the tensor's device.

    It is the sum, modulo 2^64, of each element's bits as an integer times 2 i + 1, where i is the element's position.
    Every factor is odd, so changing any one element changes the sum. For fewer than 2^31 elements of at most 32 bits,
    exchanging any two elements changes it too. 0.0 and -0.0 differ, and so do NaNs with different bits.
    Reads the tensor twice, makes no copy, and does not wait for the device.
    """
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    n_rows = bits.numel() // ROW
    positions = torch.arange(max(ROW, n_rows), device=tensor.device)
    rows, rest = bits[: n_rows * ROW].view(n_rows, ROW), bits[n_rows * ROW :]
    total = (rows.sum(0, dtype=torch.int64) * (2 * positions[:ROW] + 1)).sum()
    total += (rows.sum(1, dtype=torch.int64) * (2 * ROW * positions[:n_rows])).sum()
    return total + (rest.long() * (2 * (n_rows * ROW + positions[: rest.numel()]) + 1)).sum()


def _key(name: str, parameter: Tensor) -> int:
    """Return 64 bits that are equal on ranks that hold the same part of the same parameter."""
    part = [(int(index[0]), index.numel()) for index in held_indices(parameter)]
    digest = hashlib.sha256(f"{name} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _all_gather(mine: Tensor) -> Tensor:
    """Stack the tensors of all ranks, which have one shape, on the host."""
    flat = mine.new_empty(dist.get_world_size() * mine.numel())  # gloo gathers into one dimension only
    dist.all_gather_single(flat, mine.flatten())
    return flat.view(-1, *mine.shape).cpu()


def _distinct(ranks: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(rank) for rank in ranks}))


def _sentence(mismatch: TensorMismatch, hosts: Sequence[str]) -> str:
    if mismatch.odd:
        odd = " and ".join(f"rank {rank} ({hosts[rank]})" for rank in mismatch.odd)
        others = ", ".join(str(rank) for rank in mismatch.ranks if rank not in mismatch.odd)
        return f"{mismatch.tensor} on {odd} differs from its replicas on {others}"
    where = " and ".join(f"rank {rank} ({hosts[rank]})" for rank in mismatch.ranks[:MAX_NAMED])
    return f"the replicas of {mismatch.tensor} on {where} differ, and no majority shows which is right"
