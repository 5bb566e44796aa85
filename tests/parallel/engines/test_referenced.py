"""Training relative to a frozen reference (DPO): the same loss, metrics and gradient on every layout, within 1e-5."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from preference_ranks import OBJECTIVE, POLICY_SEED, REFERENCE_SEED, rankings
from rank_server import rank_server
from reward_ranks import MODELS

from gpt.model.gpt import GPT
from gpt.model.heads import head_outputs
from gpt.model.initialisation import initialise

TOLERANCE = 1e-5
DEEPSPEED = find_spec("deepspeed") is not None
LAYOUTS = {
    1: {"one": {}},
    2: {
        "tensor 2": {"tensor": 2},
        "pipeline 2, zero bubble": {"pipeline": 2, "schedule": "zbv_zero_bubble"},
        "data 2, zero 3": {"data": 2, "zero_stage": 3, "recompute": "full"},
        "deepspeed": {"engine": "deepspeed", "data": 2, "zero_stage": 2},
    },
    4: {
        "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2},
        "pipeline 2 x data 2, zero 3": {"pipeline": 2, "data": 2, "zero_stage": 3},
    },
}


def build(config, seed):
    model = GPT(config, embed=OBJECTIVE.front(config), head=OBJECTIVE.head(config))
    initialise(model, config, seed=seed)
    return model.double()


def one_process(config):
    """The mean loss, metrics and gradients in plain torch and float64, a prompt at a time."""
    policy, reference = build(config, POLICY_SEED), build(config, REFERENCE_SEED)
    loss, totals = OBJECTIVE.loss(compile=False), []
    for row in OBJECTIVE.batch(rankings()).split(1):
        mask = OBJECTIVE.attention_mask(row)
        outputs = [
            head_outputs(model.head, model.hidden_states(row.inputs, positions=row.positions, mask=mask))
            for model in (policy, reference)
        ]
        complete = OBJECTIVE.with_reference(row, loss.values(outputs[1], row).detach())
        totals.append(loss(outputs[0], complete))
    count = sum(t.count.item() for t in totals)
    (sum(t.sum for t in totals) / count).backward()
    numbers = [sum(t.sum.item() for t in totals) / count, count]
    numbers += [sum(t.metrics[name].item() for t in totals) / count for name in loss.metric_names]
    return numbers, {name: p.grad.numpy() for name, p in policy.named_parameters()}


@pytest.fixture(scope="module")
def references():
    return {name: one_process(config) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def losses():
    """The losses of three steps, by model and layout, of the launches so far."""
    return {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", LAYOUTS)
def test_loss_metrics_and_gradient_do_not_depend_on_the_layout(world_size, references, losses, tmp_path):
    layouts = {
        f"{model}, {name}": (model, axes)
        for model in MODELS
        for name, axes in LAYOUTS[world_size].items()
        if (model == "gpt3" or world_size != 2) and (DEEPSPEED or "engine" not in axes)
    }
    words = [json.dumps(layouts), tmp_path]
    rank_server().run_ranks("preference_ranks:work", words, nproc=world_size, logs=tmp_path / "logs", timeout_s=500)
    results = json.loads((tmp_path / "result.json").read_text())
    assert results.keys() == layouts.keys()
    for name, (model, _) in layouts.items():
        numbers, gradients = references[model]
        assert results[name]["evaluated"] == pytest.approx(numbers, abs=TOLERANCE), name
        first = losses.setdefault(model, results[name]["losses"])
        assert results[name]["losses"] == pytest.approx(first, abs=TOLERANCE), name
        assert first[0] == pytest.approx(numbers[0], abs=TOLERANCE)
        assert first[2] < first[0], "it learns"
        with np.load(tmp_path / name / "gradients.npz") as found:
            assert set(found) == set(gradients), name
            for key, expected in gradients.items():
                assert np.allclose(found[key], expected, rtol=0, atol=TOLERANCE), (name, key)
