"""A program for tests: the parts of the Megatron room on 2 real gloo ranks. Writes what it found as JSON.

python megatron_parts.py OUT.json
"""

import dataclasses
import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import megatron_on_cpu
import torch
import torch.distributed as dist
from generated import generated

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from launch.processes.local_ranks import fork_server, run_ranks
from parallel.agreement import combine
from parallel.axes.gradients import local, whole
from parallel.engines.megatron_core import MegatronEngine
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.megatron.groups import data_group, start_groups
from parallel.megatron.inference import whole_weights
from parallel.megatron.optimizer import MAIN
from parallel.megatron.sharding import gather_parts, sharded_weights

MODEL = ModelConfig(
    vocab_size=120, n_ctx=34, n_layers=2, d_model=24, n_heads=6, n_kv_heads=2, activation="swiglu", d_ff=40
)
CPU = torch.device("cpu")


def settings(model=MODEL, **parallel):
    config, batch = ParallelConfig(**{"precision": "fp32", **parallel}), BatchConfig(1, 128)
    layout = resolve_layout(config, batch, model=model, seq_len=32, world_size=2)
    return EngineSettings(model, config, layout, OptimizerConfig(1e-3), 1, seed=3)


def groups(chosen, other):
    """Whether groups are made once for a layout, and again for another."""
    start_groups(chosen.layout, seed=1)
    first = data_group()
    start_groups(chosen.layout, seed=1)
    kept = data_group() is first
    start_groups(other.layout, seed=1)
    return [kept, data_group() is not first, dist.get_world_size(data_group())]


def parameters(engine):
    """By name, the parameter's shape, the dimension over tensor ranks, and the shapes of our weights in it."""
    return {
        one.name: [
            list(one.parameter.shape),
            one.tensor_dim,
            [list(weight.template.shape) for weight in one.weights],
            all(torch.equal(*pair) for pair in zip(one.split(one.join(rows(one))), rows(one), strict=True)),
        ]
        for one in engine.parameters
    }


def rows(one):
    """Different numbers for each of the weights of a parameter, in the shapes of this tensor rank."""
    shapes = [weight.tensor_shape for weight in one.weights]
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]


def sharding(chosen, mesh):
    """Names of weights whose part of a tensor rank does not survive the way over data ranks, or over tensor ranks."""
    wrong = []
    for name, weight in sharded_weights(chosen, NextToken(), mesh, stage=0).items():
        generator = torch.Generator().manual_seed(len(name))
        full = torch.randn(weight.template.shape, generator=generator)
        part = full
        if weight.tensor_dim is not None:
            part = full.chunk(mesh.layout.tensor, weight.tensor_dim)[mesh.tensor_rank].contiguous()
        shard = weight.on_data_ranks(part)
        if local(shard).shape != weight.template.to_local().shape or not torch.equal(weight.gather_rows(shard), part):
            wrong.append(f"{name} over data ranks")
        if not torch.equal(whole(weight.on_tensor_ranks(part)), full) or not torch.equal(whole(shard), full):
            wrong.append(f"{name} over tensor ranks")
    return wrong


def uneven():
    """Parts of 2 and 0 rows, joined."""
    size = 2 if dist.get_rank() == 0 else 0
    return gather_parts(torch.full((size, 3), 7.0), [2, 0], dist.group.WORLD).tolist()


def train_a_step(engine):
    tokens = torch.randint(120, (2, 33), generator=torch.Generator().manual_seed(dist.get_rank()))
    engine.forward_backward(Batch(tokens[:, :-1], tokens[:, 1:]))
    engine.optimizer_step(1e-3)


def skips(engine):
    """Whether a gradient that is not finite on rank 1 is skipped on this rank and changes no weight."""
    before = engine.weights_digest()
    tokens = torch.randint(120, (2, 33), generator=torch.Generator().manual_seed(0))
    engine.forward_backward(Batch(tokens[:, :-1], tokens[:, 1:]))
    if dist.get_rank() == 1:
        engine.parameters[0].parameter.main_grad.view(-1)[0] = float("nan")
    result = engine.optimizer_step(1e-3)
    return [result.skipped, engine.weights_digest() == before, engine.state.steps]


def untrained(chosen, native):
    """Of an engine without an optimizer, in bf16: whether its fp32 weights are native; the loss; replicas; tokens."""
    parallel = dataclasses.replace(chosen.parallel, precision="bf16")
    chosen = dataclasses.replace(chosen, optimizer=None, parallel=parallel)
    engine = MegatronEngine(chosen, objective=NextToken(), device=CPU)
    tokens = torch.randint(120, (2, 33), generator=torch.Generator().manual_seed(0))
    loss = engine.evaluate([Batch(tokens[:, :-1], tokens[:, 1:])]).mean
    same = engine.weights_digest() == native.weights_digest()
    return [same, loss, engine.check_replicas(), len(generated(engine, [[1, 2]], max_new_tokens=3)[0].tokens)]


def state(engine):
    """Names of tensors that are not read as they were written, the steps after a change, and who holds how much."""
    wrong = []
    for one in engine.parameters:
        for key in (MAIN, *engine.state.moments):
            value = torch.randn(one.parameter.shape, generator=torch.Generator().manual_seed(len(key)))
            engine.state.write(one.parameter, key, value)
            if not torch.equal(engine.state.read(one.parameter, key), value):
                wrong.append(f"{key} of {one.name}")
    before = engine.state.steps
    engine.state.steps = 9
    entries = engine.optimizer.chained_optimizers[0].optimizer.state.values()
    held = sum(entry["exp_avg"].numel() for entry in entries)
    return [wrong, before, engine.state.steps, {float(entry["step"]) for entry in entries} == {9.0}, held]


def saved(megatron, native):
    """Names of saved tensors that are not spread as the native engine's, or have other values."""
    ours, expected = megatron.by_name(), native.by_name()
    wrong = [name for name in {*ours, *expected} if name not in ours or name not in expected]
    for name, tensor in expected.items():
        same = (ours[name].placements, ours[name].device_mesh) == (tensor.placements, tensor.device_mesh)
        if not same or not torch.equal(local(ours[name]), local(tensor)):
            wrong.append(name)
    return wrong


def inference(engine, native):
    """Names of weights that are not the native engine's, gathered whole."""
    expected = {name: whole(parameter) for name, parameter in native.parameters}
    found = {name: whole(weight) for name, weight in whole_weights(engine.parameters, engine.state)}
    return [name for name, weight in expected.items() if not torch.equal(found[name], weight)]


def schedules(engine):
    """The loss and the number of targets of each micro-batch, whose numbers of targets differ, in the order given."""
    tokens = torch.randint(120, (3, 33), generator=torch.Generator().manual_seed(0))
    masks = torch.arange(32) < torch.tensor([5, 20, 32])[:, None]
    batches = list(Batch(tokens[:, :-1], tokens[:, 1:], masks).split(1))
    with torch.no_grad():
        engine.schedule.run(batches, forward_only=True)
    totals, engine.schedule.totals = engine.schedule.totals, []
    return [[float(loss), int(count)] for loss, count in totals]


def work(rank, folder, out):
    torch.set_num_threads(1)
    megatron_on_cpu.install()
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=200))
    tensor, data = settings(tensor=2), settings(dataclasses.replace(MODEL, n_ctx=33), data=2)
    pipeline = settings(pipeline=2, schedule="interleaved_1f1b")
    # 33 positions do not divide over data ranks
    result = {"groups": groups(tensor, data), "uneven": uneven()}
    for name, chosen in (("tensor", tensor), ("data", data)):
        engine, native = (kind(chosen, objective=NextToken(), device=CPU) for kind in (MegatronEngine, NativeEngine))
        result[name] = {
            "parameters": parameters(engine),
            "sharding": sharding(chosen, engine.mesh),
            "inference": inference(engine, native),
            "saved": saved(engine.checkpoints.shared._tensors, native.tensors),
            "schedules": schedules(engine),
        }
        result[name]["untrained"] = untrained(chosen, native)
        result[name]["skips"] = skips(engine)
        train_a_step(engine)
        result[name]["state"] = state(engine)
    engine = MegatronEngine(pipeline, objective=NextToken(), device=CPU)
    result["pipeline"] = {"schedules": schedules(engine)}
    everyone = combine(result, lambda found: found, None)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        Path(out).write_text(json.dumps(everyone))


def main():
    with tempfile.TemporaryDirectory() as folder:
        context = fork_server(["parallel.engines.megatron_core", "megatron.core.models.gpt", "megatron.core.optimizer"])
        run_ranks(context, work, [folder, sys.argv[1]], nproc=2, logs=Path(folder, "logs"))


if __name__ == "__main__":
    main()
