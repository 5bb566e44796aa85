"""A key-value cache of fixed capacity.

Shapes: b sequences, k key-value heads, t new positions, s positions so far, e = d_head.
"""

from torch import Tensor

from gpt.model.gpt import GPT


class KeyValueCache:
    """Keys and values of one layer, (b, k, capacity, e), allocated once, at the first append."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (b, k, t, e). Returns all so far, (b, k, s, e), as views of the cache."""
        if self._k is None or self._v is None:
            shape = (*k.shape[:2], self.capacity, k.size(3))
            self._k, self._v = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.size(2)
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self._k[:, :, self.length : end] = k
        self._v[:, :, self.length : end] = v
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only the sequences at `rows` (n,), in this order."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[rows], self._v[rows]

    def unpack(self, columns: Tensor, capacity: int) -> "KeyValueCache":
        """Return a new cache of n sequences. Sequence i gets the positions `columns[i]` (n, w) of the only row
        here."""
        assert self._k is not None
        assert self._v is not None
        result = KeyValueCache(capacity)
        result.append(self._k[0][:, columns].transpose(0, 1), self._v[0][:, columns].transpose(0, 1))
        return result

    def replace_rows(self, rows: Tensor, source: "KeyValueCache") -> None:
        """Put the n sequences of `source` in place of those at `rows` (n,). All rows end at the same position.

        Positions before those of `source` keep stale keys: the caller masks them.
        """
        assert self._k is not None
        assert self._v is not None
        assert source._k is not None
        assert source._v is not None
        start = self.length - source.length
        assert start >= 0, f"{source.length} positions before position {self.length}"
        self._k[rows, :, start : self.length] = source._k[:, :, : source.length]
        self._v[rows, :, start : self.length] = source._v[:, :, : source.length]

    def drop_first(self, n: int) -> None:
        """Drop the first n positions of all sequences, to make room at the end."""
        assert self._k is not None
        assert self._v is not None
        for tensor in (self._k, self._v):
            tensor[:, :, : self.length - n] = tensor[:, :, n : self.length].clone()
        self.length -= n

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` positions."""
        assert length <= self.length, f"{length} positions of {self.length}"
        self.length = length


def make_cache(model: GPT, capacity: int) -> dict[str, KeyValueCache]:
    """Return an empty cache for each layer that `model` holds, by layer name, as `GPT.forward` takes it."""
    return {name: KeyValueCache(capacity) for name in model.blocks}
