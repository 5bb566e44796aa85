"""Requests are divided among data ranks: each has one owner, prefixes stay together, the work is about equal."""

import random

from gpt.evaluation.batching.data_parallel import data_parallel_requests, gather_by_index
from gpt.inference.model import LocalModel
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT


def shares(sequences: list[list[int]], ranks: int) -> list[list[int]]:
    return [data_parallel_requests(sequences, data_rank=rank, data_size=ranks) for rank in range(ranks)]


def test_every_request_has_one_owner() -> None:
    rng = random.Random(1)
    sequences = [[rng.randrange(5) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    for ranks in (1, 2, 3, 8):
        owned = shares(sequences, ranks)
        assert sorted(number for share in owned for number in share) == list(range(40))
        assert all(share == sorted(share) for share in owned)
    assert shares([], 3) == [[], [], []]


def test_prefixes_stay_together_and_the_work_is_equal() -> None:
    """Four prefixes of 100 tokens with ten short continuations each, mixed, on four ranks: one prefix a rank."""
    sequences = [[prefix] * 100 + [number] for number in range(10) for prefix in range(4)]
    for share in shares(sequences, 4):
        assert len(share) == 10
        assert len({sequences[number][0] for number in share}) == 1


def test_one_process_keeps_its_own_results() -> None:
    """tests/launch/evaluation gathers over real data ranks."""
    config = ModelConfig(vocab_size=8, n_ctx=8, n_layers=1, d_model=8, n_heads=1)
    assert gather_by_index(LocalModel(GPT(config)), {1: "b", 0: "a"}) == {0: "a", 1: "b"}
