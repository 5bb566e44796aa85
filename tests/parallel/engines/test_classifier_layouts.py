"""A classifier has the same losses, gradients and weights on every layout, in fp32 within 1e-5, dropout and all."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from classifier_ranks import MICRO, MODEL_OF, STEPS, batch_of_step, objective_of, optimizer_of
from rank_server import rank_server
from reward_ranks import MODELS

from gpt.model.dropout import ResidualDropout, position_keys
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.optimizer import build_optimizer, is_frozen

TOLERANCE = 1e-5
LAYOUTS = {
    2: {
        "tensor 2": {"tensor": 2},
        "tensor 2, whole sequences": {"tensor": 2, "sequence_parallel": False},
        "pipeline 2": {"pipeline": 2},
        "data 2": {"data": 2},
        "data 2, zero 3": {"data": 2, "zero_stage": 3},
    },
    4: {
        "tensor 2 x pipeline 2": {"tensor": 2, "pipeline": 2},
        "pipeline 2 x data 2, zero 3": {"pipeline": 2, "data": 2, "zero_stage": 3, "schedule": "zbv_zero_bubble"},
    },
}


def totals_of(model, objective, batch):
    """The loss of each micro-batch in plain torch; dropout as the batch's keys say."""
    loss = objective.loss(compile=False)
    for part in batch.split(MICRO):
        hidden = model.hidden_states(part.inputs, positions=part.positions, mask=objective.attention_mask(part))
        dropout = None
        if part.row_keys is not None:
            keys = position_keys(part.row_keys, length=hidden.size(1))
            dropout = ResidualDropout(keys, objective.config.head_dropout).of_layer(-1)
        yield loss(model.head(hidden, dropout), part)


def numbers_of(totals, names):
    count = sum(t.count.item() for t in totals)
    metrics = [sum(t.metrics[name].item() for t in totals) / count for name in names]
    return [sum(t.reported.item() for t in totals) / count, count, *metrics]


def one_process(name):
    """What layouts must find, by plain torch in float64: numbers of an evaluation and of steps, gradients, weights."""
    config, objective, settings = MODELS[MODEL_OF[name]], objective_of(name), optimizer_of(name)
    loss = objective.loss(compile=False)
    model = GPT(replace(config, tied=False), embed=objective.front(config), head=objective.head(config))
    initialise(model, config, seed=5)
    model.double()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(key, settings))
    with torch.no_grad():
        batch = replace(batch_of_step(objective, 99), row_keys=None)
        evaluated = numbers_of([*totals_of(model, objective, batch)], loss.evaluation_names)
    optimizer, trained, gradients = build_optimizer(model.named_parameters(), settings), [], {}
    for step in range(STEPS):
        totals = [*totals_of(model, objective, batch_of_step(objective, step))]
        optimizer.zero_grad()
        (sum(t.sum for t in totals) / sum(t.count for t in totals)).backward()
        gradients = gradients or {k: p.grad.numpy().copy() for k, p in model.named_parameters() if p.requires_grad}
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        trained += [*numbers_of(totals, loss.metric_names), norm.item()]
        optimizer.step()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "critic" in key:
                    parameter.clamp_(-0.03, 0.03)
    weights = {key: parameter.detach().numpy() for key, parameter in model.named_parameters()}
    return {"evaluated": evaluated, "trained": trained, "gradients": gradients, "weights": weights}


@pytest.fixture(scope="module")
def references():
    return {name: one_process(name) for name in MODEL_OF}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world_size", LAYOUTS)
def test_losses_gradients_and_weights_do_not_depend_on_the_layout(world_size, references, tmp_path):
    layouts = {
        f"{kind}, {name}": (kind, parallel) for kind in references for name, parallel in LAYOUTS[world_size].items()
    }
    words = [json.dumps(layouts), tmp_path]
    rank_server().run_ranks("classifier_ranks:work", words, nproc=world_size, logs=tmp_path / "logs", timeout_s=500)
    results = json.loads((tmp_path / "result.json").read_text())
    for name, (kind, _) in layouts.items():
        expected = references[kind]
        for key in ("evaluated", "trained"):
            assert results[name][key] == pytest.approx(expected[key], abs=TOLERANCE, rel=TOLERANCE), (name, key)
        for folder, values in (("0", expected["gradients"]), ("1", expected["weights"])):
            with np.load(tmp_path / name / folder / "gradients.npz") as found:
                assert set(found) == set(values), name
                for key, value in values.items():
                    assert np.allclose(found[key], value, rtol=0, atol=TOLERANCE), (name, folder, key)
    for kind in ("modern", "attention"):
        assert all(np.abs(w).max() <= 0.03 for key, w in references[kind]["weights"].items() if "critic" in key)
    assert np.abs(references["attention"]["gradients"]["head.query.weight"]).max() > 10 * TOLERANCE
