"""Compare replicas of the same weights and moments on several ranks, bit for bit, by checksums.

Ranks hold replicas of the same part of the same tensor in three cases: weights of data ranks that shard nothing (ZeRO
0, the copies of hybrid sharding), weights that tensor ranks hold whole (norms, some biases and key-value heads), and
the tied embedding on the first and the last stage. A shard of ZeRO exists once: a flipped bit in it reaches all ranks,
and no comparison can find it.
"""

import hashlib
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from parallel.agreement import combine
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
    """Find replicas and their ranks at construction, and compare them at each `compare`.

    All ranks must construct it and call it together. The storages of the tensors must stay the same.

    `parameters`: those of this rank by canonical name, each with the tensors of its shape and sharding to compare.
    `kinds`: a prefix for the name of each of these tensors, in the same order. A slot is a part of a parameter that
    has replicas; there are at most as many as parameters on the ranks of one data rank. Communication: 8 bytes per
    parameter from each rank to rank 0 once, and a reduction of 16 bytes per slot and kind at each `compare`.
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
        self.slots = combine(np.array([one.key for one in held], dtype=np.int64), _replicated, None)  # sorted keys
        present = set(self.slots.tolist())
        self.held = [one for one in held if one.key in present]
        self.slot_of = np.searchsorted(self.slots, [one.key for one in self.held])  # of each of `held`

    @torch.no_grad()
    def compare(self) -> list[TensorMismatch]:
        """Return the mismatches, in the same order on every rank.

        Waits for the device and one small reduction. The sums of each rank are gathered only after a mismatch.
        """
        if len(self.slots) == 0:
            return []
        sums = torch.zeros(len(self.held), len(self.kinds), dtype=torch.int64, device=self.device)
        for index, one in enumerate(self.held):
            sums[index] = torch.stack([checksum(tensor) for tensor in one.tensors])
        # ~x reverses the order of integers: one maximum gives the largest and the smallest sum of each slot
        lowest = torch.iinfo(torch.int64).min
        bounds = torch.full((2, len(self.slots), len(self.kinds)), lowest, device=self.device)
        slots = torch.from_numpy(self.slot_of).to(self.device).view(-1, 1).expand_as(sums)
        bounds[0].scatter_reduce_(0, slots, sums, "amax")  # a rank may hold two replicas
        bounds[1].scatter_reduce_(0, slots, ~sums, "amax")
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        wrong = [(slot, kind) for slot, kind in torch.nonzero(bounds[0] != ~bounds[1]).tolist()]
        return self._mismatches(wrong, sums) if wrong else []

    def _mismatches(self, wrong: list[tuple[int, int]], sums: Tensor) -> list[TensorMismatch]:
        """Describe each (slot, kind) in `wrong`. Collective: gathers the sums of these slots on rank 0."""
        found, mine = sums.tolist(), dict[tuple[int, int], list[int]]()
        for index, slot in enumerate(self.slot_of.tolist()):
            for kind in range(len(self.kinds)):
                mine.setdefault((slot, kind), []).append(found[index][kind])
        names = dict(zip(self.slot_of.tolist(), [one.name for one in self.held], strict=True))
        few = [(*key, names[key[0]], mine[key]) for key in wrong if key in mine]
        return combine(few, self._by_tensor, None)

    def _by_tensor(self, everyone: list[list[tuple[int, int, str, list[int]]]]) -> list[TensorMismatch]:
        """The mismatch of each slot and kind, from each rank's replicas of it."""
        replicas: dict[tuple[int, int], tuple[str, list[tuple[int, int]]]] = {}
        for rank, rows in enumerate(everyone):
            for slot, kind, name, sums in rows:
                replicas.setdefault((slot, kind), (name, []))[1].extend((rank, value) for value in sums)
        result = []
        for (_, kind), (name, values) in sorted(replicas.items()):
            common, times = Counter(value for _, value in values).most_common(1)[0]
            odd = [rank for rank, value in values if value != common] if 2 * times > len(values) else []
            ranks = [rank for rank, _ in values]
            result.append(TensorMismatch(f"{self.kinds[kind]}{name}", _distinct(ranks), _distinct(odd)))
        return result


def describe(mismatches: Sequence[TensorMismatch]) -> str:
    """Describe the result of `compare` in one sentence. Every rank must call it: it gathers the host names."""
    named = {rank for mismatch in mismatches[:MAX_NAMED] for rank in (mismatch.odd or mismatch.ranks)[:MAX_NAMED]}
    hosts = combine(socket.gethostname(), lambda everyone: {rank: everyone[rank] for rank in named}, None)
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


def _replicated(keys: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The keys that occur more than once, sorted."""
    distinct, counts = np.unique(np.concatenate(keys), return_counts=True)
    return distinct[counts > 1]


def _distinct(ranks: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(rank) for rank in ranks}))


def _sentence(mismatch: TensorMismatch, hosts: Mapping[int, str]) -> str:
    if mismatch.odd:
        odd = _named([f"rank {rank} ({hosts[rank]})" for rank in mismatch.odd[:MAX_NAMED]], len(mismatch.odd), " and ")
        outvoted = set(mismatch.odd)
        others = [str(rank) for rank in mismatch.ranks if rank not in outvoted]
        return f"{mismatch.tensor} on {odd} differs from its replicas on {_named(others, len(others), ', ')}"
    where = " and ".join(f"rank {rank} ({hosts[rank]})" for rank in mismatch.ranks[:MAX_NAMED])
    return f"the replicas of {mismatch.tensor} on {where} differ, and no majority shows which is right"


def _named(words: Sequence[str], count: int, separator: str) -> str:
    """The first words joined, and the number of the others."""
    more = f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
    return f"{separator.join(words[:MAX_NAMED])}{more}"
