"""In every plan, each token attends to its own sequence up to itself and to nothing else."""

import random

import numpy as np
import pytest

from gpt.evaluation.batching.forward_plan import ForwardPlan, batches_by_length, row_tokens

Sequences = list[tuple[int, ...]]


def check(plan: ForwardPlan, sequences: Sequences) -> None:
    """Run the passes on a cache of token ids and check which tokens every token of every sequence attends to."""
    cache = np.zeros(plan.cache_length, dtype=np.int64)
    tokens, positions, attended = [], [], []  # by pass, rows one after the other
    for planned in plan.passes:
        ids, mask, cached = planned.tokens(sequences), planned.mask(), planned.cached_tokens
        keys = np.concatenate((np.broadcast_to(cache[:cached], (len(ids), cached)), ids), axis=1)
        tokens.append(ids.ravel())
        positions.append(planned.positions().ravel())
        attended.append([list(keys[r][mask[r, c]]) for r in range(len(ids)) for c in range(planned.width)])
        if not planned.needs_mask:
            assert cached == 0
            causal = np.tri(planned.width, dtype=bool)
            assert all((mask[r] == causal)[: row_tokens(row)].all() for r, row in enumerate(planned.rows))
        if planned.uses_cache:
            assert len(planned.rows) == 1
            cache[cached : cached + planned.width] = ids[0]
    for number, sequence in enumerate(sequences):
        for first in {0, len(sequence) - 1, len(sequence) // 2}:
            indices = plan.token_indices(number, first)
            assert len(indices) == len(sequence) - first
            for position, (pass_number, index) in enumerate(indices, start=first):
                assert tokens[pass_number][index] == sequence[position]
                assert positions[pass_number][index] == position
                assert attended[pass_number][index] == list(sequence[: position + 1])


def random_sequences(rng: random.Random, n: int, *, alphabet: int, longest: int) -> Sequences:
    """About two thirds of the sequences continue a prefix of another."""
    found: list[tuple[int, ...]] = []
    for _ in range(n):
        start = rng.choice(found)[: rng.randint(0, longest)] if found and rng.random() < 0.7 else ()
        found.append((*start, *(rng.randrange(alphabet) for _ in range(rng.randint(1, longest)))))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("seed", range(30))
def test_each_token_attends_to_its_own_sequence(seed: int) -> None:
    rng = random.Random(seed)
    sequences = random_sequences(rng, rng.randint(1, 60), alphabet=rng.choice([2, 5, 300]), longest=rng.choice([4, 60]))
    for branching in (True, False):
        limit = rng.choice([8, 40, 200])
        plan = ForwardPlan(sequences, row_tokens=limit, batch_tokens=200, branching=branching)
        check(plan, sequences)
        for planned in plan.passes:
            assert all(row_tokens(row) <= limit for row in planned.rows if len(row) > 1)
            assert len(planned.rows) == 1 or len(planned.rows) * planned.width <= 200
            assert branching or planned.cached_tokens or all(len(row) == 1 for row in planned.rows)
    assert plan.tokens <= sum(map(len, sequences))


def test_examples_shared_by_many_questions_are_read_once() -> None:
    examples = tuple(range(100, 160))
    questions = [(*examples, 7, a, 8, b) for a in range(10) for b in range(10)]
    plan = ForwardPlan(questions, row_tokens=50, batch_tokens=1000)
    check(plan, questions)
    assert plan.tokens < 60 + 4 * 100
    assert max(planned.width for planned in plan.passes[1:]) <= 50
    apart = ForwardPlan(questions, row_tokens=50, batch_tokens=1000, sharing=False)
    check(apart, questions)
    assert apart.tokens == 100 * 64


def test_choices_of_one_question_share_it_within_a_row() -> None:
    sequences = [(q, *range(20), choice, 9) for q in range(50, 60) for choice in (1, 2, 3, 4)]
    plan = ForwardPlan(sequences, row_tokens=100, batch_tokens=150)
    check(plan, sequences)
    assert plan.tokens == 10 * (21 + 4 * 2)
    assert plan.cache_length == 0
    assert [len(planned.rows) for planned in plan.passes] == [5, 5]


def test_a_short_prefix_gets_no_pass_of_its_own() -> None:
    sequences = [(1, 2, 3, i, *range(500, 600)) for i in range(30)]
    plan = ForwardPlan(sequences, row_tokens=200, batch_tokens=1100)
    check(plan, sequences)
    assert plan.cache_length == 0
    assert {len(planned.rows) for planned in plan.passes} == {10}


def test_a_prefix_tree_1500_levels_deep() -> None:
    sequences = [tuple(range(n)) for n in range(1, 1500)]
    plan = ForwardPlan(sequences, row_tokens=64, batch_tokens=512)
    assert plan.tokens == 1499
    assert len(plan.token_indices(0, 0)) == 1
    assert len(plan.token_indices(1498, 700)) == 799


def test_batches_hold_sequences_of_similar_length() -> None:
    batches = list(batches_by_length([5, 30, 7, 6, 100, 1], batch_tokens=30))
    assert batches == [[4], [1], [2, 3, 0, 5]]
