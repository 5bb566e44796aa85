"""A reward model has the same validation loss and the same gradient on every layout, in fp32 within 1e-5."""

import json

import numpy as np
import pytest
from rank_server import rank_server
from reward_ranks import MODELS, PROMPTS, prompts

from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.post_training.reward import Reward

TOLERANCE = 1e-5
LAYOUTS = {
    2: {
        "tensor 2": {"tensor": 2},
        "tensor 2, whole sequences": {"tensor": 2, "sequence_parallel": False},
        "pipeline 2": {"pipeline": 2},
        "data 2": {"data": 2},
        "data 2, zero 3": {"data": 2, "zero_stage": 3},
        "pipeline 2, zero bubble": {"pipeline": 2, "schedule": "zbv_zero_bubble"},
    },
    4: {
        "tensor 4": {"tensor": 4},
        "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2},
        "tensor 2 x data 2": {"tensor": 2, "data": 2},
        "pipeline 2 x data 2": {"pipeline": 2, "data": 2},
        "pipeline 2 x data 2, zero 3": {"pipeline": 2, "data": 2, "zero_stage": 3, "schedule": "zbv_zero_bubble"},
    },
}


def one_process(config, pool):
    """The mean loss, metrics and gradients in plain torch and float64, a prompt at a time."""
    objective = Reward(pool)
    model = GPT(config, embed=objective.front(config), head=objective.head(config))
    initialise(model, config, seed=5)
    model.double()
    batch, loss = objective.batch(prompts()), objective.loss(compile=False)
    totals = []
    for row in batch.split(1):
        mask = objective.attention_mask(row)
        totals.append(loss(model(row.inputs, positions=row.positions, mask=mask), row))
    count = sum(t.count.item() for t in totals)
    (sum(t.sum for t in totals) / count).backward()
    numbers = [sum(t.sum.item() for t in totals) / count, count]
    numbers += [sum(t.metrics[name].item() for t in totals) / count for name in loss.metric_names]
    return numbers, {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def references():
    return {(name, pool): one_process(config, pool) for name, config in MODELS.items() for pool in ("last", "mean")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", LAYOUTS)
def test_loss_metrics_and_gradient_do_not_depend_on_the_layout(world_size, references, tmp_path):
    layouts = {
        f"{model}, {pool}, {name}": (model, pool, parallel)
        for model, pool in (("gpt3", "last"), ("modern", "last"), ("modern", "mean"))
        for name, parallel in LAYOUTS[world_size].items()
        if model == "gpt3" or parallel.get("tensor") == world_size or (pool == "mean" and "pipeline" in parallel)
    }
    words = [json.dumps(layouts), tmp_path]
    rank_server().run_ranks("reward_ranks:work", words, nproc=world_size, logs=tmp_path / "logs", timeout_s=500)
    results = json.loads((tmp_path / "result.json").read_text())
    assert results.keys() == layouts.keys()
    for name, (model, pool, _) in layouts.items():
        numbers, gradients = references[model, pool]
        assert 3 < numbers[1] < PROMPTS, "some prompts have no pair"
        norm = np.sqrt(sum(np.square(g).sum() for g in gradients.values()))
        assert results[name]["evaluated"] == pytest.approx(numbers, abs=TOLERANCE), name
        assert results[name]["trained"] == pytest.approx([*numbers, norm], abs=TOLERANCE, rel=TOLERANCE), name
        with np.load(tmp_path / name / "gradients.npz") as found:
            assert set(found) == set(gradients), name
            for key, expected in gradients.items():
                assert np.allclose(found[key], expected, rtol=0, atol=TOLERANCE), (name, key)
