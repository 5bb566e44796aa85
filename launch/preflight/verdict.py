"""From the outcomes of all-reduces to the nodes and links at fault. Functions of plain values only."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

Pair = tuple[int, int]

SLOW = 0.5  # a pair or a rank with less than this share of the usual speed is slow
MAX_ALL_ROUNDS = 8  # up to this many nodes, every pair is tried
FEW_ROUNDS = 3  # with more nodes, each is tried with this many others
MUST_AGREE = ("torch", "nccl")  # else collectives can fail; other differences are only warnings


def pair_rounds(nodes: Iterable[int]) -> list[list[Pair]]:
    """Rounds of disjoint pairs (round-robin tournament): every pair once, or FEW_ROUNDS rounds for many nodes."""
    ring: list[int | None] = [*nodes]
    count = len(ring)
    ring += [None] if count % 2 else []
    rounds = []
    for _ in range(max(0, len(ring) - 1)):
        half = len(ring) // 2
        facing = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds if count <= MAX_ALL_ROUNDS else rounds[:FEW_ROUNDS]


def blame(tried: Collection[Pair], failed: Collection[Pair]) -> tuple[list[int], list[Pair]]:
    """The nodes at fault, and the links (pairs) at fault that no such node explains.

    A node is at fault if it failed with every node that is not at fault itself, and with two at least.
    """
    nodes: list[int] = []
    while True:
        open_pairs = [pair for pair in tried if not set(pair) & set(nodes)]
        bad = [pair for pair in failed if not set(pair) & set(nodes)]
        fails, tries = (Counter(node for pair in pairs for node in pair) for pairs in (bad, open_pairs))
        guilty = [node for node, count in fails.items() if count == tries[node] and count >= 2]
        if not guilty:
            return sorted(nodes), sorted(bad)
        nodes.append(max(guilty, key=lambda node: (fails[node], -node)))


def slow_pairs(speeds: Mapping[Pair, float]) -> list[Pair]:
    """The pairs with less than SLOW of the upper quartile of the speeds (bytes/s)."""
    if len(speeds) < 3:
        return []
    usual = sorted(speeds.values())[-1 - (len(speeds) - 1) // 4]
    return [pair for pair, speed in speeds.items() if speed < SLOW * usual]


def slow_ranks(speeds: Mapping[int, float]) -> list[int]:
    """The ranks with less than SLOW of the median speed of the matrix product; none among fewer than three."""
    if len(speeds) < 3:
        return []
    usual = sorted(speeds.values())[len(speeds) // 2]
    return [rank for rank, speed in speeds.items() if speed < SLOW * usual]


def bus_bytes_per_s(size_bytes: int, ranks: int, seconds: float) -> float:
    """The bandwidth that each rank's link needs in a ring: nccl-tests' "bus bandwidth", 2(n-1)/n * size / time."""
    return 2 * (ranks - 1) / ranks * size_bytes / seconds


def differences(facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Where nodes differ from most others: [(node, reason)] for MUST_AGREE, and warnings for other facts.

    `facts`: node -> name of a fact -> its value.
    """
    problems, warnings = [], []
    for name in dict.fromkeys(name for found in facts.values() for name in found):
        values = {node: str(found.get(name, "missing")) for node, found in facts.items()}
        usual, count = Counter(values.values()).most_common(1)[0]
        for node, value in values.items():
            if value == usual:
                continue
            if name in MUST_AGREE:
                problems.append((node, f"has {name} {value}, {count} of {len(facts)} nodes have {usual}"))
            else:
                warnings.append(f"node {node} has {name} {value}, {count} of {len(facts)} nodes have {usual}")
    return problems, warnings
