"""Compute which sample of which corpus each position of a run reads, from (seed, position). No file is opened.

Two bijections, computed and not stored:

1. mixture: position n of the run -> (corpus k, index j). Within each corpus j = 0, 1, 2, ... without gap or repeat.
2. permutation: (corpus k, epoch, rank in the epoch) -> sample, keyed by (seed, corpus name, epoch).

docs/adr/0003-data-order-is-a-function.md has the reasons and the proof of the bound on the mixture.
"""

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError

# Part of the data fingerprint in every checkpoint: raise it if the arithmetic below changes the order.
ORDER_VERSION = 1

# The first n positions read a corpus of normalised weight w between n*w - MIXTURE_BOUND and n*w + MIXTURE_BOUND times,
# for any corpora and weights, and for every n up to 2**50.
MIXTURE_BOUND = 1.69

_ROUNDS = 12  # below 10, permutations of 5 or fewer samples are measurably uneven
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: multiples of it are far apart modulo 2**64

_ROUND_OFFSETS = np.array([(i + 1) * _GOLDEN % 2**64 for i in range(_ROUNDS)], dtype=np.uint64)  # (rounds,)
# 0-d arrays, which numpy need not convert: converting took a fifth of the time of a small batch.
_ONE, _SHIFT_27, _SHIFT_30, _SHIFT_31, _SHIFT_32, _SHIFT_63 = (np.array(n, np.uint64) for n in (1, 27, 30, 31, 32, 63))
_LOW_32, _TOP_BIT = np.array(0xFFFFFFFF, dtype=np.uint64), np.array(1 << 63, dtype=np.uint64)
_MULTIPLY_1, _MULTIPLY_2 = (np.array(n, np.uint64) for n in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """A binary tree over the corpora. Node 0 is the root; every inner node splits its stream of samples in two.

    Of a node's first m samples, the lighter child gets round(m * share / 2**64) and the heavier child the rest.
    """

    light_share: UInts  # (nodes,), in units of 2**-64, from 1 to 2**63
    children: Ints  # (nodes, 2): [heavier, lighter]; a child c < 0 is the corpus ~c


def build_mixture(weights: Sequence[float]) -> Mixture:
    """The Huffman tree of the weights (finite, > 0, any sum). Of equal weights, the first one given comes first.

    From a leaf to the root of a Huffman tree, node weights grow at least like Fibonacci numbers. This bounds the sum of
    the rounding errors on the path (see the ADR). Weights are exact fractions.
    """
    # (weight, creation number, child as in `children`); the creation number breaks ties
    heap: list[tuple[Fraction, int, int]] = [(Fraction(weight), k, ~k) for k, weight in enumerate(weights)]
    heapq.heapify(heap)
    shares: list[int] = []
    children: list[tuple[int, int]] = []
    while len(heap) > 1:
        light_weight, _, light = heapq.heappop(heap)
        heavy_weight, _, heavy = heapq.heappop(heap)
        total = light_weight + heavy_weight
        # A share of 0 would break the carry test of `assign`; 2**-64 of fewer than 2**63 samples still rounds to none.
        shares.append(max(1, round(light_weight / total * 2**64)))
        children.append((heavy, light))
        heapq.heappush(heap, (total, len(weights) + len(shares), len(shares) - 1))
    # The root was made last. Renumber, so that the root is node 0.
    last = len(shares) - 1
    renumbered = [[last - child if child >= 0 else child for child in pair] for pair in reversed(children)]
    return Mixture(
        light_share=np.array(shares[::-1], dtype=np.uint64),
        children=np.array(renumbered, dtype=np.int64).reshape(len(shares), 2),
    )


def assign(mixture: Mixture, positions: Ints) -> tuple[Ints, Ints]:
    """The corpus (n,) and the index within that corpus (n,) of each position (n,), positions >= 0.

    A position costs as many steps as its corpus is deep in the tree. Each step moves whole arrays down one level.
    """
    index = positions.astype(np.uint64)
    node = np.full(positions.shape, 0 if len(mixture.light_share) else ~0, dtype=np.int64)
    inner = np.flatnonzero(node >= 0)
    while inner.size:
        at, m = node[inner], index[inner]
        share = mixture.light_share[at]
        before, fraction = _rounded_product(m, share)
        # Sample m goes to the lighter child if round((m + 1) * share) > round(m * share): if adding share carries.
        to_light = fraction >= ~share + _ONE
        index[inner] = np.where(to_light, before, m - before)
        node[inner] = mixture.children[at, to_light.astype(np.int64)]
        inner = inner[node[inner] >= 0]
    return ~node, index.astype(np.int64)


def count(mixture: Mixture, n_positions: int) -> list[int]:
    """Return how many of the first `n_positions` positions each corpus feeds, in the order of the weights."""
    counts = [0] * (len(mixture.light_share) + 1)
    pending = [(0 if len(mixture.light_share) else ~0, n_positions)]
    while pending:
        node, m = pending.pop()
        if node < 0:
            counts[~node] = m
            continue
        light = (m * int(mixture.light_share[node]) + 2**63) >> 64
        heavy_child, light_child = mixture.children[node].tolist()
        pending += [(heavy_child, m - light), (light_child, light)]
    return counts


def unassign(mixture: Mixture, corpus: int, index: int) -> int:
    """The position that reads sample `index` of a corpus: the inverse of `assign`. Exact, in Python's integers."""
    parents = {int(child): (at, side) for at, pair in enumerate(mixture.children) for side, child in enumerate(pair)}
    node, m = ~corpus, index
    while node in parents:
        node, side = parents[node]
        share = int(mixture.light_share[node])
        m = (_nth_light if side else _nth_heavy)(m, share)
    return m


def _nth_light(n: int, share: int) -> int:
    """The sample of a node that is the n-th of its lighter child, both counted from 0."""
    return -(-((n + 1) * 2**64 - 2**63) // share) - 1


def _nth_heavy(n: int, share: int) -> int:
    """The sample of a node that is the n-th of its heavier child, both counted from 0."""

    def heavy(samples: int) -> int:
        return samples - ((samples * share + 2**63) >> 64)

    first = (n + 1) * 2**64 // (2**64 - share)  # within 2 of the answer
    while heavy(first) <= n:
        first += 1
    while first and heavy(first - 1) > n:
        first -= 1
    return first - 1


def _rounded_product(m: UInts, share: UInts) -> tuple[UInts, UInts]:
    """Quotient and remainder of (m * share + 2**63) / 2**64, exact, from 32-bit halves."""
    m_low, m_high = m & _LOW_32, m >> _SHIFT_32
    share_low, share_high = share & _LOW_32, share >> _SHIFT_32
    low = m_low * share_low
    middle = m_high * share_low + (low >> _SHIFT_32)
    middle_2 = m_low * share_high + (middle & _LOW_32)
    high = m_high * share_high + (middle >> _SHIFT_32) + (middle_2 >> _SHIFT_32)
    fraction = (middle_2 << _SHIFT_32) | (low & _LOW_32)
    return high + (fraction >> _SHIFT_63), fraction ^ _TOP_BIT


def permute(rank: UInts, *, size: UInts, key: UInts) -> UInts:
    """The image of each rank (n,) under the permutation of range(size) that its key selects; size and key (n,).

    A Feistel network over a rows x columns grid that just covers range(size), with addition modulo the side instead of
    exclusive or. While the image lies outside of the range, the network is applied again (cycle walking: Black and
    Rogaway, Ciphers with arbitrary finite domains, 2002). Sizes up to 2**62.
    """
    return _cycle_walk(_feistel, rank, size, key)


def _cycle_walk(network: Callable[[UInts, UInts, UInts, UInts], UInts], start: UInts, size: UInts, key: UInts) -> UInts:
    """Apply a network to each value (n,), and again while the result is outside of range(size)."""
    root = np.sqrt(size.astype(np.float64)).astype(np.uint64)
    rows = root + (root * root < size)  # a rounding error does no harm: rows * columns >= size holds in any case
    columns = (size + rows - 1) // rows
    round_keys = mix(key + _ROUND_OFFSETS[:, None])  # (rounds, n); one call, as small arrays cost numpy a call each
    result = network(start, rows, columns, round_keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = network(result[outside], rows[outside], columns[outside], round_keys[:, outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(value: UInts, rows: UInts, columns: UInts, round_keys: UInts) -> UInts:
    """One pass of the network over range(rows * columns). Each round adds a keyed hash of one half to the other."""
    column, row = np.divmod(value, rows)
    for i, round_key in enumerate(round_keys):
        if i % 2 == 0:
            row = (row + (mix(round_key ^ column) >> _ONE)) % rows
        else:
            column = (column + (mix(round_key ^ row) >> _ONE)) % columns
    return column * rows + row


def unpermute(image: UInts, *, size: UInts, key: UInts) -> UInts:
    """The rank of each image (n,): the inverse of `permute`."""
    return _cycle_walk(_feistel_back, image, size, key)


def _feistel_back(value: UInts, rows: UInts, columns: UInts, round_keys: UInts) -> UInts:
    """The inverse of `_feistel`."""
    column, row = np.divmod(value, rows)
    for i in reversed(range(len(round_keys))):
        if i % 2 == 0:
            row = (row + rows - (mix(round_keys[i] ^ column) >> _ONE) % rows) % rows
        else:
            column = (column + columns - (mix(round_keys[i] ^ row) >> _ONE) % columns) % columns
    return column * rows + row


def mix(value: UInts) -> UInts:
    """The finaliser of SplitMix64: a bijection of 64-bit words in which each output bit depends on each input bit."""
    value = value ^ (value >> _SHIFT_30)
    value *= _MULTIPLY_1
    value ^= value >> _SHIFT_27
    value *= _MULTIPLY_2
    value ^= value >> _SHIFT_31
    return value


@dataclass(frozen=True)
class DataOrder:
    """The order of a run over corpora of known size: a function of the four arguments of `make_order`."""

    mixture: Mixture
    sizes: UInts  # (corpora,)
    keys: UInts  # (corpora,)

    def lookup(self, positions: NDArray[Any]) -> tuple[Ints, Ints, Ints]:
        """Corpus, epoch and sample, each (n,), that the positions (n,) of the run read."""
        positions = np.asarray(positions)
        assert positions.ndim == 1, f"positions of shape {positions.shape}: one row is wanted"
        assert np.issubdtype(positions.dtype, np.integer), f"positions of {positions.dtype}: integers are wanted"
        assert positions.size == 0 or positions.min() >= 0, "positions count from 0"
        corpus, index = assign(self.mixture, positions.astype(np.int64))
        size = self.sizes[corpus]
        epoch, rank = np.divmod(index.astype(np.uint64), size)
        sample = permute(rank, size=size, key=_epoch_keys(self.keys[corpus], epoch))
        return corpus, epoch.astype(np.int64), sample.astype(np.int64)

    def positions_of(self, corpus: int, sample: int, *, n_positions: int) -> list[int]:
        """The positions below `n_positions` that read a sample, one an epoch at most: the inverse of `lookup`.

        Time and memory grow with the number of epochs, not of positions.
        """
        size = int(self.sizes[corpus])
        epochs = np.arange(-(-self.counts(n_positions)[corpus] // size), dtype=np.uint64)
        keys = _epoch_keys(self.keys[corpus], epochs)
        ranks = unpermute(np.full_like(epochs, sample), size=np.full_like(epochs, size), key=keys)
        found = [unassign(self.mixture, corpus, epoch * size + rank) for epoch, rank in enumerate(ranks.tolist())]
        return [position for position in found if position < n_positions]

    def counts(self, n_positions: int) -> list[int]:
        """Return how many samples of each corpus the first `n_positions` positions read."""
        return count(self.mixture, n_positions)


def _epoch_keys(corpus_key: UInts, epoch: UInts) -> UInts:
    """The key of each epoch's permutation of a corpus."""
    return mix(corpus_key + (epoch + np.uint64(1)) * np.uint64(_GOLDEN))


def make_order(names: Sequence[str], *, sizes: Sequence[int], weights: Sequence[float], seed: int) -> DataOrder:
    """The order over corpora, given by name, number of samples (>= 1) and weight (> 0, any sum).

    The permutations of a corpus depend only on the seed and its name, so adding a corpus keeps the order within others.
    """
    for name, size in zip(names, sizes, strict=True):
        if not 1 <= size <= 2**62:
            raise ConfigError(f"corpus '{name}' has {size:,} samples; it needs from 1 to 2**62")
    keys = [hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest() for name in names]
    return DataOrder(
        mixture=build_mixture(weights),
        sizes=np.array(sizes, dtype=np.uint64),
        keys=np.array([int.from_bytes(key, "little") for key in keys], dtype=np.uint64),
    )
