"""From the outcomes of pairs to the nodes and links at fault."""

from itertools import combinations

import pytest

from launch.preflight import verdict


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_few_nodes_are_all_paired_once_in_rounds_of_disjoint_pairs(count):
    rounds = verdict.pair_rounds(range(count))
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(count), 2))
    for pairs in rounds:
        nodes = [node for pair in pairs for node in pair]
        assert len(nodes) == len(set(nodes))
    assert len(rounds) == (count - 1 if count % 2 == 0 else count)


def test_of_many_nodes_each_meets_a_few_others():
    rounds = verdict.pair_rounds(range(100))
    pairs = [pair for each in rounds for pair in each]
    assert len(rounds) == 3
    assert len(set(pairs)) == len(pairs) == 150


@pytest.mark.parametrize("count", [3, 4, 5, 8, 33])
def test_every_single_bad_node_and_link_is_found(count):
    tried = [pair for pairs in verdict.pair_rounds(range(count)) for pair in pairs]
    assert verdict.blame(tried, []) == ([], [])
    for bad in range(count):
        assert verdict.blame(tried, [pair for pair in tried if bad in pair]) == ([bad], [])
    for link in tried:
        assert verdict.blame(tried, [link]) == ([], [link])


def test_two_bad_nodes_and_a_bad_link_are_told_apart():
    tried = list(combinations(range(6), 2))
    failed = [pair for pair in tried if {1, 4} & set(pair)] + [(0, 2)]
    assert verdict.blame(tried, failed) == ([1, 4], [(0, 2)])
    assert verdict.blame([(0, 1)], [(0, 1)]) == ([], [(0, 1)]), "of two nodes nobody knows which"


def test_a_slow_node_makes_all_its_pairs_slow():
    speeds = {(0, 1): 90.0, (0, 2): 30.0, (1, 2): 31.0}
    assert verdict.slow_pairs(speeds) == [(0, 2), (1, 2)]
    assert verdict.blame(list(speeds), verdict.slow_pairs(speeds)) == ([2], [])
    assert verdict.slow_pairs({(0, 1): 90.0}) == []
    usual = dict.fromkeys(combinations(range(8), 2), 100.0)
    assert verdict.slow_pairs(usual | {(2, 5): 49.0}) == [(2, 5)]


def test_a_slow_rank_is_one_with_half_the_speed_of_the_median_rank():
    assert verdict.slow_ranks({0: 100.0, 1: 90.0, 2: 44.0}) == [2]
    assert verdict.slow_ranks({0: 100.0, 1: 10.0}) == []


def test_the_bus_bandwidth_is_that_of_nccl_tests():
    assert verdict.bus_bytes_per_s(1000, 4, 0.5) == 2 * 3 / 4 * 1000 / 0.5


def test_nodes_that_differ_from_most_others_are_named():
    same = {"torch": "2.13", "nccl": "2.27", "GPUs": 8}
    problems, warnings = verdict.differences({"a": same, "b": same | {"nccl": "2.20"}, "c": same | {"GPUs": 7}})
    assert problems == [("b", "has nccl 2.20, 2 of 3 nodes have 2.27")]
    assert warnings == ["node c has GPUs 7, 2 of 3 nodes have 8"]
