"""A tree of token sequences by their common prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROOT = 0


@dataclass
class PrefixNode:
    """Tokens `start` to `end` of `sequence`, and of all other sequences below. Nodes are named by their list index."""

    parent: int
    start: int
    end: int
    sequence: int
    children: list[int] = field(default_factory=list)
    subtree_tokens: int = 0  # tokens of this node and all nodes below


def prefix_tree(sequences: Sequence[Sequence[int]]) -> tuple[list[PrefixNode], list[int]]:
    """Build the tree of distinct, non-empty sequences.

    Returns the nodes, the root first, and for each sequence the node where it ends.
    """
    arrays = [np.array(sequence, dtype=">u4") for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].tobytes())  # big-endian bytes sort as the numbers do
    nodes = [PrefixNode(-1, 0, 0, 0)]
    ends = [0] * len(arrays)
    path = [ROOT]  # from the root to the end of the previous sequence
    previous = np.zeros(0, dtype=">u4")
    for number in order:
        shared = _common_prefix(previous, arrays[number])
        previous = arrays[number]
        assert len(previous) > shared, "sequences must be distinct and not empty"
        below = -1
        while nodes[path[-1]].end > shared:
            below = path.pop()
        if nodes[path[-1]].end < shared:
            path.append(_split_node(nodes, below, shared))
        nodes[path[-1]].children.append(len(nodes))
        ends[number] = len(nodes)
        nodes.append(PrefixNode(path[-1], shared, len(previous), number))
        path.append(len(nodes) - 1)
    _count_tokens(nodes)
    return nodes, ends


def flat_tree(sequences: Sequence[Sequence[int]]) -> tuple[list[PrefixNode], list[int]]:
    """Return a tree like that of `prefix_tree`, but every sequence is a child of the root and shares nothing."""
    ends = list(range(1, len(sequences) + 1))
    nodes = [PrefixNode(ROOT, 0, len(sequence), i) for i, sequence in enumerate(sequences)]
    nodes = [PrefixNode(-1, 0, 0, 0, ends), *nodes]
    _count_tokens(nodes)
    return nodes, ends


def _split_node(nodes: list[PrefixNode], number: int, at: int) -> int:
    """Move the tokens of a last child before `at` into a new parent. Returns the parent's index."""
    node, parent = nodes[number], len(nodes)
    nodes.append(PrefixNode(node.parent, node.start, at, node.sequence, [number]))
    nodes[node.parent].children[-1] = parent
    node.parent, node.start = parent, at
    return parent


def _count_tokens(nodes: list[PrefixNode]) -> None:
    order = [ROOT]
    for number in order:
        order += nodes[number].children
    for number in reversed(order):
        node = nodes[number]
        node.subtree_tokens = node.end - node.start + sum(nodes[child].subtree_tokens for child in node.children)


def _common_prefix(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n
