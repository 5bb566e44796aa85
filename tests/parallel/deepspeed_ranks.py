"""Ranks that train one small model with the DeepSpeed or the native engine, many engines in one launch.

`train_cases` is a function for launch.processes.local_ranks.run_ranks. A case is a run of layout_runs.py with more
keys: "optimizer", "uneven" (rows without targets), "load" and "save" (folders of checkpoints), "checks" (what else).
"""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from generated import generated
from layout_runs import PROMPTS, SEED, SEQUENCES, batch_of_step, logits_of, settings_of, tokens_of_step

from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.axes.stage import canonical_parameters
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.local_tier import find_newest_local
from parallel.engines.choose import build_engine
from parallel.engines.settings import sharding_signature
from parallel.layout.mesh import build_mesh
from parallel.parallelize import build_inference_stage
from parallel.zero.fragments import ZeroFragments

CPU = torch.device("cpu")
LR, STEPS, SAVED_AT = 3e-3, 20, 3
EMPTY_ROWS = [0, 3]  # of the whole batch: no target, so that data ranks count different numbers of targets
KEEP = Retention(2)


def train_cases(rank, cases, folder):
    """Run every case on this rank. Rank 0 writes NAME.json, and NAME.npz with the gradients of the first step."""
    cases = json.loads(cases)
    torch.set_num_threads(1)
    world_size = cases[0]["world_size"]
    store = dist.FileStore(f"{folder}/store-{world_size}-{cases[0]['name']}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    meshes = {}
    for case in cases:
        axes = case["parallel"].get("pipeline", 1)
        engine = build(case, mesh=meshes.get(axes))
        meshes[axes] = engine.mesh
        result = run_case(engine, case, Path(folder))
        if rank == 0:
            Path(folder, f"{case['name']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def settings_of_case(case):
    keys = {"learning_rate": LR, "max_gradient_norm": 0.5, **case.get("optimizer", {})}
    optimizer = OptimizerConfig(**{**keys, "frozen": tuple(keys.get("frozen", ()))})
    return replace(settings_of(case), optimizer=None if case.get("only_evaluates") else optimizer)


def build(case, *, mesh, init_weights=True):
    settings = settings_of_case(case)
    return build_engine(settings, objective=NextToken(), device=CPU, init_weights=init_weights, mesh=mesh)


def rank_batch(engine, step, case):
    """This data rank's rows of a step's batch."""
    share = SEQUENCES // engine.data_size
    first = engine.data_rank * share
    batch = batch_of_step(step, slice(first, first + share), documents=case.get("documents", False))
    if not case.get("uneven", True):
        return batch
    return batch.without_rows([row - first for row in EMPTY_ROWS if first <= row < first + share])


def train(engine, steps, case):
    """Losses and norms of the steps."""
    figures = []
    for step in steps:
        engine.forward_backward(rank_batch(engine, step, case))
        result = engine.optimizer_step(LR)
        figures.append((result.loss.mean, result.gradient_norm))
    return figures


def run_case(engine, case, folder):
    result = {"initial": engine.weights_digest(), "replicas": engine.check_replicas(), "held": held_elements(engine)}
    if case.get("only_evaluates"):
        return {**result, "logits": logits_of(engine, tokens_of_step(10_001)[:2, :7]).flatten()[::97].tolist()}
    if "load" in case:
        found, _ = find_latest(folder / case["load"])
        engine.checkpoints.shared.load(found)
        result["loaded"] = engine.weights_digest()
        return {**result, "figures": train(engine, range(SAVED_AT, SAVED_AT + 3), case)}
    if "gradients" in case.get("checks", ()):
        save_gradients(engine, case, folder)
    if "discards" in case.get("checks", ()):
        check_discards(engine, case)
    result["figures"] = train(engine, range(SAVED_AT), case)
    result["at_save"] = engine.weights_digest()
    if "save" in case:
        state = {"step": SAVED_AT}
        engine.checkpoints.shared.save(folder / case["save"], step=SAVED_AT, state=state, keep=KEEP)
    result["figures"] += train(engine, range(SAVED_AT, case["steps"]), case)
    result["final"] = engine.weights_digest()
    if "background" in case.get("checks", ()):
        check_background_saves(engine, case, folder)
    result["evaluated"] = engine.evaluate(rank_batch(engine, 10_000, case).split(2)).mean
    result["logits"] = logits_of(engine, tokens_of_step(10_001)[:2, :7]).flatten()[::97].tolist()
    result["greedy"] = [one.tokens for one in generated(engine, PROMPTS, max_new_tokens=4, seed=3)]
    result["everyone"] = engine.all_gather_objects([dist.get_rank()])
    result["replicas"] = engine.check_replicas()
    return result


def held_elements(engine):
    """The elements of weights that compute and that this rank holds between steps."""
    parameters = [one.parameter for one in engine.fragments.all] if hasattr(engine, "fragments") else []
    return sum(one.numel() + (one.ds_tensor.numel() if hasattr(one, "ds_tensor") else 0) for one in parameters)


def save_gradients(engine, case, folder):
    """Of the first step, by name, of all stages; then forget them."""
    engine.forward_backward(rank_batch(engine, 0, case))
    mine = {name: gradient.numpy() for name, gradient in engine.named_gradients()}
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        np.savez(folder / f"{case['name']}.npz", **{name: one for each in everyone for name, one in each.items()})
    engine.optimizer_step(LR, discard=True)


def check_discards(engine, case):
    """Steps that update nothing leave weights, optimizer and gradients as they were."""
    before = engine.weights_digest()
    engine.forward_backward(rank_batch(engine, 7, case))
    result = engine.optimizer_step(LR, discard=dist.get_rank() == 0, flags=(False, dist.get_rank() > 0))
    assert (result.skipped, result.discarded, result.flags) == (False, True, (False, dist.get_world_size() > 1))
    engine.forward_backward(rank_batch(engine, 8, case).without_rows(range(SEQUENCES // engine.data_size)))
    result = engine.optimizer_step(LR)
    assert (result.skipped, result.loss.tokens) == (True, 0)
    engine.forward_backward(rank_batch(engine, 9, case))
    for totals in engine.stages[-1].totals[:1]:  # the loss of one micro-batch, where the last stage is
        totals[0].fill_(float("nan"))
    assert engine.optimizer_step(LR).skipped
    assert engine.weights_digest() == before


def check_background_saves(engine, case, folder):
    """Save to both stores, train on, load each, and take the same steps again, bit for bit."""
    shared, local = engine.checkpoints.shared, engine.checkpoints.local
    state, step = {"run_id": "r"}, case["steps"]
    folders = folder / f"{case['name']}-shared", folder / f"{case['name']}-local"
    estimate = shared.estimate(folders[0], state=state, step=step)
    shared.start_save(folders[0], step=step, state=state, keep=KEEP)
    local.start_save(folders[1], step=step, state=state, keep=KEEP)
    (of_shared,), (of_local,) = shared.finished(wait=True), local.finished(wait=True)
    assert (of_shared.error, of_local.error) == (None, None)
    assert abs(estimate.size_bytes - of_shared.bytes) < 200
    saved = engine.weights_digest()
    expected = train(engine, range(50, 52), case)
    found, _ = find_latest(folders[0])
    signature = sharding_signature(settings_of_case(case))
    found_local, messages, _ = find_newest_local(folders[1], run_id="r", layout=signature)
    assert found_local is not None, messages
    for store, checkpoint in ((shared, found), (local, found_local)):
        store.load(checkpoint)
        assert engine.weights_digest() == saved
        assert train(engine, range(50, 52), case) == expected
    shared.load_weights(found)
    assert engine.weights_digest() == saved
    fresh = build(case, mesh=engine.mesh, init_weights=False)
    fresh.checkpoints.shared.load(found)
    assert train(fresh, range(50, 52), case) == expected


def frozen_fragments(dtype):
    """The fragments, stage and settings of a model that is not trained, on one process, without DeepSpeed."""
    settings = settings_of({"world_size": 1, "parallel": {}})
    mesh = build_mesh(settings.layout, torch.device("cpu"))
    stage = build_inference_stage(settings.model, mesh, index=0, dtype=dtype)
    fragments = ZeroFragments(canonical_parameters(stage), None, None, state_names=(), mesh=mesh)
    fragments.initialise(settings.model, seed=SEED)
    fragments.update_compute_weights()
    return fragments, stage, settings


class Clamped(NextToken):
    """An objective with a constraint: no weight of the first block's MLP is above 0.01."""

    def after_step(self, parameters):
        for name, weight in parameters:
            if name == "blocks.0.mlp.up.weight":
                weight.clamp_(max=0.01)


def watch_updates(rank, layouts, folder):
    """Assert what a step does to weights and moments: with gradients that are not finite, and with a constraint."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
    for number, parallel in enumerate(json.loads(layouts)):
        case = {"world_size": 1, "parallel": {"engine": "deepspeed", **parallel}, "uneven": False}
        engine = build_engine(settings_of_case(case), objective=Clamped(), device=CPU)
        train(engine, range(2), case)
        assert engine.fragments.steps == 2
        clamped = next(one for one in engine.fragments.all if one.name == "blocks.0.mlp.up.weight")
        assert clamped.weight.max() == np.float32(0.01)
        before, moments = engine.weights_digest(), saved_bits(engine)
        for value in ("nan", "inf"):
            loss, engine.stages[-1].loss = engine.stages[-1].loss, Scaled(engine.stages[-1].loss, float(value))
            engine.forward_backward(rank_batch(engine, 3, case))
            result = engine.optimizer_step(LR)
            engine.stages[-1].loss = loss
            assert result.skipped, (parallel, value)
            assert result.loss.mean > 0, "the loss was finite"
            assert engine.weights_digest() == before
            assert saved_bits(engine) == moments
            assert engine.fragments.steps == 2
        other = build_engine(settings_of_case(case), objective=Clamped(), device=CPU, mesh=engine.mesh)
        train(other, range(2), case)
        assert train(engine, range(4, 6), case) == train(other, range(4, 6), case), number
    dist.destroy_process_group()


class Scaled:
    """A loss whose gradient alone is multiplied, by nan or inf."""

    def __init__(self, loss, factor):
        self.loss, self.factor = loss, factor
        self.metric_names, self.evaluation_names = loss.metric_names, loss.evaluation_names

    def __call__(self, outputs, batch):
        totals = self.loss(outputs, batch)
        return replace(totals, sum=totals.sum * self.factor)


def saved_bits(engine):
    """The bits of everything that a checkpoint would hold."""
    return {
        (one.name, key): tensor.numpy().tobytes()
        for one in engine.fragments.all
        for key, tensor in engine.fragments.state_of(one).items()
    }
