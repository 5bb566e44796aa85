"""Plans against their meaning: whatever is shared, each token sees its own sequence up to itself and nothing else."""

import random

import numpy as np
import pytest
import torch

from gpt.evaluation.batching.prefix_tree import Plan, batches_by_length
from gpt.evaluation.batching.scoring import Request, plan_scores, score
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

Sequences = list[tuple[int, ...]]


def check(plan: Plan, sequences: Sequences) -> None:
    """Runs the passes on a cache of plain numbers and looks at what every token of every sequence sees."""
    cache = np.zeros(plan.cache_length, dtype=np.int64)
    tokens, positions, seen = [], [], []
    for read in plan.reads:
        tokens.append(read.tokens(sequences))
        positions.append(read.positions())
        mask = read.mask()
        keys = np.concatenate((np.broadcast_to(cache[: read.earlier], (len(tokens[-1]), read.earlier)), tokens[-1]), 1)
        seen.append([[list(keys[r][mask[r, c]]) for c in range(read.width)] for r in range(len(read.rows))])
        if not read.needs_mask:
            assert read.earlier == 0
            assert all(
                (mask[r] == np.tri(read.width, dtype=bool))[: len_of(read.rows[r])].all() for r in range(len(mask))
            )
        if read.kept or read.earlier:
            assert len(read.rows) == 1
            cache[read.earlier : read.earlier + read.width] = tokens[-1][0]
    for number, sequence in enumerate(sequences):
        for first in {0, len(sequence) - 1, len(sequence) // 2}:
            places = plan.places(number, first)
            assert len(places) == len(sequence) - first
            for depth, place in enumerate(places, start=first):
                assert tokens[place.read][place.row, place.column] == sequence[depth]
                assert positions[place.read][place.row, place.column] == depth
                assert seen[place.read][place.row][place.column] == list(sequence[: depth + 1])


def len_of(row: list) -> int:  # type: ignore[type-arg]
    return sum(piece.stop - piece.start for piece in row)


def random_sequences(rng: random.Random, n: int, *, alphabet: int, longest: int) -> Sequences:
    """Half of them go on from the beginning of another."""
    found: list[tuple[int, ...]] = []
    for _ in range(n):
        start = rng.choice(found)[: rng.randint(0, longest)] if found and rng.random() < 0.7 else ()
        found.append((*start, *(rng.randrange(alphabet) for _ in range(rng.randint(1, longest)))))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("seed", range(30))
def test_each_token_sees_its_own_sequence(seed: int) -> None:
    rng = random.Random(seed)
    sequences = random_sequences(rng, rng.randint(1, 60), alphabet=rng.choice([2, 5, 300]), longest=rng.choice([4, 60]))
    for branching in (True, False):
        row_tokens = rng.choice([8, 40, 200])
        plan = Plan(sequences, row_tokens=row_tokens, batch_tokens=200, branching=branching)
        check(plan, sequences)
        for read in plan.reads:
            assert all(len_of(row) <= row_tokens for row in read.rows if len(row) > 1)
            assert len(read.rows) == 1 or len(read.rows) * read.width <= 200
            assert branching or read.earlier or all(len(row) == 1 for row in read.rows)
    assert plan.tokens <= sum(map(len, sequences))


def test_few_shot_questions_read_their_examples_once() -> None:
    examples = tuple(range(100, 160))
    questions = [(*examples, 7, a, 8, b) for a in range(10) for b in range(10)]
    plan = Plan(questions, row_tokens=50, batch_tokens=1000)
    check(plan, questions)
    assert plan.tokens < 60 + 4 * 100
    assert max(read.width for read in plan.reads[1:]) <= 50
    apart = Plan(questions, row_tokens=50, batch_tokens=1000, sharing=False)
    check(apart, questions)
    assert apart.tokens == 100 * 64


def test_choices_of_one_question_share_it_in_a_batch() -> None:
    sequences = [(q, *range(20), choice, 9) for q in range(50, 60) for choice in (1, 2, 3, 4)]
    plan = Plan(sequences, row_tokens=100, batch_tokens=150)
    check(plan, sequences)
    assert plan.tokens == 10 * (21 + 4 * 2)
    assert plan.cache_length == 0
    assert [len(read.rows) for read in plan.reads] == [5, 5]


def test_a_short_beginning_is_not_worth_a_pass_of_its_own() -> None:
    sequences = [(1, 2, 3, i, *range(500, 600)) for i in range(30)]
    plan = Plan(sequences, row_tokens=200, batch_tokens=1100)
    check(plan, sequences)
    assert plan.cache_length == 0
    assert {len(read.rows) for read in plan.reads} == {10}


def test_sequences_that_begin_one_another_a_thousand_deep() -> None:
    sequences = [tuple(range(n)) for n in range(1, 1500)]
    plan = Plan(sequences, row_tokens=64, batch_tokens=512)
    assert plan.tokens == 1499
    assert len(plan.places(0, 0)) == 1
    assert len(plan.places(1498, 700)) == 799


def test_batches_by_length() -> None:
    batches = list(batches_by_length([5, 30, 7, 6, 100, 1], batch_tokens=30))
    assert batches == [[4], [1], [2, 3, 0, 5]]


ROPE = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "n_kv_heads": 2}


@pytest.mark.parametrize("family", [{}, ROPE], ids=["gpt3", "llama"])
def test_scores_are_the_same_with_and_without_sharing(family: dict[str, object]) -> None:
    """To 1e-4 nats: a longer row sums in another order."""
    config = ModelConfig(vocab_size=90, n_ctx=80, n_layers=2, d_model=32, n_heads=4, init_std=0.3, **family)  # type: ignore[arg-type]
    model = GPT(config)
    initialise(model, config, seed=8)
    model.requires_grad_(False)
    rng = random.Random(3)
    texts = [text[:81] for text in random_sequences(rng, 30, alphabet=90, longest=25) if len(text) > 1]
    examples = tuple(rng.randrange(90) for _ in range(50))
    texts += [(*examples, *(rng.randrange(90) for _ in range(rng.randint(1, 30)))) for _ in range(30)]
    texts += [(*text[:-1], rng.randrange(90)) for text in texts[::3]]  # other tokens after the same text
    requests = [Request(list(text), rng.randint(0, len(text) - 1)) for text in texts]
    plan, _ = plan_scores(requests, batch_tokens=70)
    assert plan.cache_length > 0
    assert plan.tokens < sum(len(r.tokens) for r in requests) * 0.7
    seen: list[int] = []
    shared = score(model, requests, batch_tokens=70, progress=seen.append)
    apart = score(model, requests, batch_tokens=70, sharing=False)
    assert sum(seen) == len(requests)
    for request, a, b in zip(requests, shared, apart, strict=True):
        assert a.greedy == b.greedy
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)
        if request.n_scored:
            log_probs = model(torch.tensor([request.tokens[:-1]]))[0].log_softmax(-1)
            first = len(request.tokens) - request.n_scored
            plain = [float(log_probs[i - 1, request.tokens[i]]) for i in range(first, len(request.tokens))]
            assert a.log_probs == pytest.approx(plain, abs=1e-4)
