"""A plan's passes through a model give each token the logits of a plain forward pass over its sequence."""

import random

import pytest
import torch

from gpt.evaluation.batching.forward_plan import ForwardPlan
from gpt.evaluation.batching.plan_runner import PlanRunner
from gpt.inference.model import LocalModel
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

CONFIG = ModelConfig(vocab_size=50, n_ctx=80, n_layers=2, d_model=32, n_heads=4, init_std=0.3)


@pytest.mark.parametrize("extra_capacity", [0, 7])
def test_passes_give_the_logits_of_plain_forward_passes(extra_capacity: int) -> None:
    """Equal to 1e-4, since a longer row sums in another order. The extra capacity is overwritten by the next pass."""
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=8)
    model.requires_grad_(False)
    rng = random.Random(2)
    prefix = [rng.randrange(50) for _ in range(45)]
    sequences = [[*prefix, i, *(rng.randrange(50) for _ in range(rng.randint(1, 20)))] for i in range(12)]
    plan = ForwardPlan(sequences, row_tokens=40, batch_tokens=200)
    runner = PlanRunner(LocalModel(model), plan, extra_capacity=extra_capacity)
    assert plan.cache_length > 45
    indices: list[list[tuple[int, int]]] = [[] for _ in plan.passes]
    for number, sequence in enumerate(sequences):
        (last,) = plan.token_indices(number, len(sequence) - 1)
        indices[last.pass_number].append((last.flat_index, number))
    scored = 0
    for planned, ends in zip(plan.passes, indices, strict=True):
        logits = runner.next_logits(planned, torch.tensor([index for index, _ in ends], dtype=torch.int64))
        for row, (_, number) in zip(logits, ends, strict=True):
            plain = model(torch.tensor([sequences[number]]))[0, -1]
            torch.testing.assert_close(row, plain, rtol=1e-4, atol=1e-4)
            scored += 1
        runner.rewind(planned.cached_tokens + planned.width if planned.uses_cache else 0)
    assert scored == len(sequences)
