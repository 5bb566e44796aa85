"""Compares copies of the same weights and moments on several ranks, bit for bit by checksums; never mends a copy.

Copies are what ranks hold of the same part of the same tensor: weights of data ranks that share nothing (ZeRO 0, the
copies of hybrid sharding), weights that tensor ranks hold whole (norms, some biases and key-value heads), and the tied
embedding of first and last stage. What ZeRO shards exists once: a flipped bit in it reaches all ranks alike.
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

from parallel.agreement import exchange
from parallel.axes.gradients import local
from parallel.axes.initialisation import held_indices

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
ROW = 4096  # elements
MOST_NAMED = 4  # differences that a message spells out, and ranks for each


@dataclass(frozen=True)
class Place:
    """A parameter of this rank, or the part that it holds of one, and the tensors that are compared: local parts."""

    key: int  # of the parameter's name and the part
    name: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Difference:
    """Copies that are not equal: the ranks that hold one, and those that a majority of copies contradicts, if there is
    a majority."""

    tensor: str
    ranks: tuple[int, ...]
    odd: tuple[int, ...]


class ReplicaCheck:
    """Finds out, when it is made, who holds copies of what, and compares them at each `compare`. All ranks make it and
    call it together; the tensors' storages must stay the same.

    `parameters`: this rank's, by canonical name, each with the tensors of its shape and sharding to compare. `kinds`:
    what the names of these tensors begin with, in the same order. Sends, from all ranks to all, 8 bytes for each
    parameter once, and 8 bytes for each tensor with a copy elsewhere at each `compare`.
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
        places = [
            Place(_key(name, parameter), name, tuple(local(tensor) for tensor in tensors))
            for name, parameter, tensors in parameters
            if local(parameter).numel() > 0
        ]
        keys = [place.key for place in places]
        everywhere, counts = np.unique(np.concatenate(self._gather_keys(keys)), return_counts=True)
        copied = set(everywhere[counts > 1].tolist())
        self.places = [place for place in places if place.key in copied]
        gathered = self._gather_keys([place.key for place in self.places])
        lengths = [len(keys) for keys in gathered]
        self.most = max(lengths)  # places of any rank: what each sends, padded
        # Of each copy, by rank and place: its rank, its number there, and what it is a copy of.
        self.ranks = np.repeat(np.arange(len(gathered)), lengths)
        self.slots = np.concatenate([np.arange(length) for length in lengths])
        _, self.firsts, self.groups = np.unique(np.concatenate(gathered), return_index=True, return_inverse=True)

    @torch.no_grad()
    def compare(self) -> list[Difference]:
        """What differs, in the same order on every rank. Waits for the device and for one small all-gather; only where
        something differs, for a second one of its names."""
        if self.most == 0:
            return []
        sums = torch.zeros(self.most, len(self.kinds), dtype=torch.int64, device=self.device)
        for slot, place in enumerate(self.places):
            sums[slot] = torch.stack([checksum(tensor) for tensor in place.tensors])
        found = _all_gather(sums).numpy()[self.ranks, self.slots]  # (copies, kinds)
        unequal = found != found[self.firsts][self.groups]
        if not unequal.any():
            return []
        copies, kinds = np.nonzero(unequal)
        return self._describe(sorted(set(zip(self.groups[copies].tolist(), kinds.tolist(), strict=True))), found)

    def _describe(self, wrong: list[tuple[int, int]], found: NDArray[np.int64]) -> list[Difference]:
        """`wrong`: group and kind of what differs."""
        names = exchange([place.name for place in self.places], None)
        result = []
        for group, kind in wrong:
            copies = np.flatnonzero(self.groups == group)
            sums = Counter(found[copies, kind].tolist())
            common, times = sums.most_common(1)[0]
            odd = self.ranks[copies[found[copies, kind] != common]] if 2 * times > len(copies) else ()
            name = names[self.ranks[copies[0]]][self.slots[copies[0]]]
            result.append(Difference(f"{self.kinds[kind]}{name}", *map(_distinct, (self.ranks[copies], odd))))
        return result

    def _gather_keys(self, keys: list[int]) -> list[NDArray[np.int64]]:
        """Every rank's keys, by rank."""
        lengths = _all_gather(torch.tensor([len(keys)], device=self.device)).flatten().tolist()
        if max(lengths) == 0:
            return [np.zeros(0, dtype=np.int64) for _ in lengths]
        mine = torch.zeros(max(lengths), dtype=torch.int64, device=self.device)
        mine[: len(keys)] = torch.tensor(keys, dtype=torch.int64)
        return [row[:length] for row, length in zip(_all_gather(mine).numpy(), lengths, strict=True)]


def describe(differences: Sequence[Difference]) -> str:
    """One sentence on what `compare` found. Every rank calls it: hosts are gathered."""
    hosts = exchange(socket.gethostname(), None)
    texts = [_sentence(difference, hosts) for difference in differences[:MOST_NAMED]]
    more = len(differences) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more else "")


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """0-d int64 on the tensor's device: each element's bits as an integer times 2 i + 1, i its position, summed modulo
    2^64. Reads the tensor twice and makes no copy of it; waits for nothing.

    Every factor is odd, so a change of any one element changes the sum; for elements of at most 32 bits, fewer than
    2^31 of them, so does an exchange of any two. 0.0 and -0.0 differ, and so do NaNs with different bits.
    """
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    n_rows = bits.numel() // ROW
    positions = torch.arange(max(ROW, n_rows), device=tensor.device)
    rows, rest = bits[: n_rows * ROW].view(n_rows, ROW), bits[n_rows * ROW :]
    total = (rows.sum(0, dtype=torch.int64) * (2 * positions[:ROW] + 1)).sum()
    total += (rows.sum(1, dtype=torch.int64) * (2 * ROW * positions[:n_rows])).sum()
    return total + (rest.long() * (2 * (n_rows * ROW + positions[: rest.numel()]) + 1)).sum()


def _key(name: str, parameter: Tensor) -> int:
    """64 bits by which ranks see that they hold the same part of the same parameter."""
    part = [(int(index[0]), index.numel()) for index in held_indices(parameter)]
    digest = hashlib.sha256(f"{name} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _all_gather(mine: Tensor) -> Tensor:
    """The tensors of all ranks, which have one shape, stacked on the host."""
    flat = mine.new_empty(dist.get_world_size() * mine.numel())  # gloo gathers into one dimension only
    dist.all_gather_single(flat, mine.flatten())
    return flat.view(-1, *mine.shape).cpu()


def _distinct(ranks: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(rank) for rank in ranks}))


def _sentence(difference: Difference, hosts: Sequence[str]) -> str:
    if difference.odd:
        odd = " and ".join(f"rank {rank} ({hosts[rank]})" for rank in difference.odd)
        others = ", ".join(str(rank) for rank in difference.ranks if rank not in difference.odd)
        return f"{difference.tensor} on {odd} differs from its copies on {others}"
    where = " and ".join(f"rank {rank} ({hosts[rank]})" for rank in difference.ranks[:MOST_NAMED])
    return f"the copies of {difference.tensor} on {where} differ, and no majority tells which is right"
