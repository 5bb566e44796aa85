"""The tree has a node wherever sequences part, and every path from the root spells a sequence."""

import random

import pytest

from gpt.evaluation.batching.prefix_tree import ROOT, flat_tree, prefix_tree


def test_sequences_part_where_their_tokens_differ() -> None:
    sequences = [(1, 2, 3, 4), (1, 2, 3), (1, 2, 9), (5,)]
    nodes, ends = prefix_tree(sequences)
    spans = {number: (nodes[end].start, nodes[end].end) for number, end in enumerate(ends)}
    assert spans == {0: (3, 4), 1: (2, 3), 2: (2, 3), 3: (0, 1)}
    shared = nodes[ends[1]].parent
    assert nodes[ends[0]].parent == ends[1]
    assert (nodes[shared].start, nodes[shared].end, nodes[ends[2]].parent) == (0, 2, shared)
    assert nodes[ROOT].subtree_tokens == 2 + 1 + 1 + 1 + 1


@pytest.mark.parametrize("seed", range(20))
def test_every_path_spells_its_sequence_and_no_two_children_begin_alike(seed: int) -> None:
    rng = random.Random(seed)
    drawn = [tuple(rng.randrange(3) for _ in range(rng.randint(1, 9))) for _ in range(rng.randint(1, 60))]
    sequences = list(dict.fromkeys(drawn))
    nodes, ends = prefix_tree(sequences)
    for number, sequence in enumerate(sequences):
        node, spelt = ends[number], ()
        while node != ROOT:
            part = sequences[nodes[node].sequence][nodes[node].start : nodes[node].end]
            assert part, "no node is empty"
            node, spelt = nodes[node].parent, (*part, *spelt)
        assert spelt == sequence
    for node in nodes:
        first_tokens = [sequences[nodes[child].sequence][nodes[child].start] for child in node.children]
        assert len(set(first_tokens)) == len(first_tokens)
    prefixes = {sequence[:n] for sequence in sequences for n in range(1, len(sequence) + 1)}
    assert nodes[ROOT].subtree_tokens == len(prefixes)


def test_a_flat_tree_shares_nothing() -> None:
    nodes, ends = flat_tree([(1, 2, 3), (1, 2)])
    assert [(nodes[end].parent, nodes[end].start, nodes[end].end) for end in ends] == [(ROOT, 0, 3), (ROOT, 0, 2)]
    assert nodes[ROOT].subtree_tokens == 5
