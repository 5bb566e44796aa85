"""data.document_mask: attention inside documents equals training each document alone, on every layout."""

import math

import pytest
import torch
from layout_runs import (
    LAUNCH_TIMEOUT_S,
    MODEL,
    MODERN,
    OPTIMIZER,
    SEED,
    STEPS,
    documents_of_step,
    largest_difference,
    launch,
    run_of,
    tokens_of_step,
)
from torch.nn import functional

from gpt.losses.marks import PADDING
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

LAYOUTS = {
    "data 2, ZeRO 3": (2, {"data": 2, "zero_stage": 3}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "zero bubble": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}),
    "selective": (1, {"recompute": "selective"}),
    "compiled, selective, tensor 2": (2, {"compile": True, "recompute": "selective", "tensor": 2}),
}
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 60)
GROUPED = {**MODERN, "n_kv_heads": 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [run_of(f"{family}, one", 1, {}, model=model, documents=True) for family, model in families().items()]
    for name, (world_size, parallel) in LAYOUTS.items():
        runs.append(run_of(name, world_size, parallel, model=MODERN, documents=True))
    runs.append(run_of("gpt3, tensor 2 x pipeline 2", 4, {"tensor": 2, "pipeline": 2}, documents=True))
    precise = {"precision": "bf16"}
    runs += [run_of(f"bf16{more}", 1, {**precise, **way}, documents=True) for more, way in BF16.items()]
    return launch(tmp_path_factory.mktemp("documents"), runs, timeout_s=LAUNCH_TIMEOUT_S)


BF16 = {"": {}, ", compiled": {"compile": True}}


def families():
    return {"gpt3": {}, "modern": MODERN, "grouped": GROUPED}


def parts_alone(step):
    """Every document of a step that has a target, as tokens (1, t): no padding, no neighbours, no mask."""
    for row, ids in zip(tokens_of_step(step), documents_of_step(step), strict=True):
        for number in ids.unique().tolist():
            part = row[ids == number]
            if number != PADDING and len(part) > 1:
                yield part.unsqueeze(0)


def losses_alone(model_keys, steps):
    """Textbook torch in float64 that runs each document alone; losses, norms, and the loss of a further step."""
    config = ModelConfig(**{**MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=SEED)
    model.double()
    decayed, others = ([p for p in model.parameters() if (p.dim() >= 2) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, betas=(0.9, 0.95), eps=1e-8)

    def mean_loss(step):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for tokens in parts_alone(step):
            logits = model(tokens[:, :-1])
            total = total + functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum")
            count += tokens.size(1) - 1
        return total / count, count

    losses, norms = [], []
    for step in range(steps):
        loss, _ = mean_loss(step)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_gradient_norm)))
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        evaluated, count = mean_loss(10_000)
    return losses, norms, evaluated.item(), count


@pytest.mark.parametrize("family", ["gpt3", "modern", "grouped"])
def test_documents_are_trained_as_if_each_were_alone(results, family):
    losses, norms, evaluated, count = losses_alone(families()[family], STEPS)
    ours = results[f"{family}, one"]
    assert largest_difference(ours["losses"], losses) < 1e-5
    assert largest_difference(ours["norms"], norms) < 1e-3
    assert ours["evaluated_tokens"] == count
    assert math.isclose(ours["evaluated"], evaluated, rel_tol=1e-5)


@pytest.mark.parametrize("name", [*LAYOUTS, "gpt3, tensor 2 x pipeline 2"])
def test_a_layout_equals_one_process(results, name):
    ours, reference = results[name], results["gpt3, one" if name.startswith("gpt3") else "modern, one"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert ours["evaluated_tokens"] == reference["evaluated_tokens"]
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)


@pytest.mark.parametrize("name", ["bf16", "bf16, compiled"])
def test_in_bf16_to_its_rounding(results, name):
    assert largest_difference(results[name]["losses"], results["gpt3, one"]["losses"]) < 1e-2


def test_the_mask_makes_a_difference(results):
    """Or the tests above would also pass without it."""
    one = results["gpt3, one"]["losses"]
    assert one[0] != pytest.approx(one[1], rel=1e-6)
    config = ModelConfig(**MODEL)
    model = GPT(config)
    initialise(model, config, seed=SEED)
    tokens = tokens_of_step(0)
    unmasked = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert abs(one[0] - unmasked) > 1e-4


def test_compiled_blocks_are_compiled_once_for_all_documents(results):
    """Documents begin elsewhere in each batch; a compiler that took them for shapes would compile each anew."""
    assert results["compiled, selective, tensor 2"]["compiled_graphs"] <= 4
