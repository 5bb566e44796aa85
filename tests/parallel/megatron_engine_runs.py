"""A program for tests: train one small model with Megatron-core and natively, with real gloo processes.

    python megatron_engine_runs.py RUNS.json OUT_FOLDER

RUNS.json is a list of {"name", "world_size", "parallel": {...}, "model": {...}, "steps", ...}, see `run_one`. Each run
writes NAME.json, and its ranks the gradients of step 1 as NAME.RANK.npz. Each run has processes of its own.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import megatron_on_cpu
import numpy as np
import torch
import torch.distributed as dist
from generated import generated

from gpt.inference.model import ForwardInputs
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.model.config import ModelConfig
from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig, ParameterGroup
from launch.processes.local_ranks import fork_server, run_ranks
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.local_tier import find_newest_local
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

SEQUENCES, SEQ_LEN, SEED, LEARNING_RATE = 8, 16, 5, 3e-3
MODEL = {"vocab_size": 120, "n_ctx": 16, "n_layers": 4, "d_model": 32, "n_heads": 4}
MODERN = {
    "positions": "rope",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied": False,
    "n_kv_heads": 2,
    "d_ff": 64,
}
PROMPTS = [[5, 3, 60], [7], [90, 4, 8, 20, 20, 1, 3, 9, 77]]


def launch(folder, runs, *, timeout_s):
    """Run this program; return the results by the name of the run."""
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "-W", "ignore", __file__, str(folder / "runs.json"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and its children, which would survive it
            raise
    assert process.returncode == 0, errors[-6000:]
    return {run["name"]: json.loads((folder / f"{run['name']}.json").read_text()) for run in runs}


def gradients_of(folder, name):
    """The whole gradients of step 1 of a run, by canonical name."""
    found = {}
    for path in sorted(folder.glob(f"{name}.*.npz")):
        with np.load(path) as stored:
            for key, value in stored.items():
                assert np.array_equal(found.setdefault(key, value), value), f"{key} differs between ranks"
    return found


def batch_of_step(step, engine):
    """This data rank's rows. The first three rows are short: data ranks have different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 97, (SEQUENCES, SEQ_LEN + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    targets[:3, 5:] = IGNORE
    share = SEQUENCES // engine.data_size
    rows = slice(engine.data_rank * share, (engine.data_rank + 1) * share)
    return Batch(inputs[rows], targets[rows])


def build(run):
    model = ModelConfig(**{**MODEL, **run.get("model", {})})
    parallel = ParallelConfig(**{"precision": "fp32", **run["parallel"]})
    batch = BatchConfig(run.get("micro_batch_size", 2), SEQUENCES * SEQ_LEN)
    layout = resolve_layout(parallel, batch, model=model, seq_len=SEQ_LEN, world_size=run["world_size"])
    groups = [ParameterGroup(tuple(patterns), scale, decay) for patterns, scale, decay in run.get("groups", [])]
    optimizer = OptimizerConfig(LEARNING_RATE, max_gradient_norm=0.5, groups=tuple(groups))
    settings = EngineSettings(model, parallel, layout, optimizer, batch.micro_batch_size, SEED)
    return build_engine(settings, objective=NextToken(run.get("z_loss", 0.0)), device=torch.device("cpu"))


def train(engine, first, last):
    losses, norms, metrics = [], [], []
    for step in range(first, last):
        engine.forward_backward(batch_of_step(step, engine))
        result = engine.optimizer_step(LEARNING_RATE)
        assert not result.skipped
        losses.append(result.loss.mean)
        norms.append(result.gradient_norm)
        metrics.append(dict(result.loss.metrics))
    return {"losses": losses, "norms": norms, "metrics": metrics}


def logits_of(engine):
    generator = torch.Generator().manual_seed(99)
    tokens = torch.randint(0, 97, (2, 7), generator=generator)
    inputs = ForwardInputs(tokens, torch.arange(7).unsqueeze(0))
    with engine.as_model() as model, torch.no_grad():
        return model.next_logits(inputs, indices=torch.arange(14)).double().flatten()[::37].tolist()


def rules(engine):
    """The outcomes of steps that must not update: discarded, without targets, and with a loss that is not finite."""
    before, found = engine.weights_digest(), {}
    batch = batch_of_step(0, engine)
    nothing = Batch(batch.inputs, torch.full_like(batch.targets, IGNORE))
    for name, given, discard in (("discarded", batch, dist.get_rank() == 0), ("empty", nothing, False)):
        engine.forward_backward(given)
        result = engine.optimizer_step(LEARNING_RATE, flags=(dist.get_rank() == 1, False), discard=discard)
        found[name] = [result.skipped, result.discarded, list(result.flags), result.loss.tokens]
    for _ in range(2):  # two calls add up to one step
        engine.forward_backward(batch)
    result = engine.optimizer_step(LEARNING_RATE, discard=True)
    found["twice"] = [result.loss.tokens, result.gradient_norm]
    return {**found, "unchanged": engine.weights_digest() == before}


def replicas(engine):
    """What the check of replicas says before and after a change to a parameter of rank 0."""
    before = engine.check_replicas()
    if dist.get_rank() == 0:
        with torch.no_grad():
            engine.parameters[0].parameter.view(-1)[0] += 1
    return [before, engine.check_replicas()]


def save(engine, run, result):
    """Save in the background to both stores, train on, load each again and train the same steps."""
    folder, step, more = Path(run["save"]), run["steps"], run.get("more", 2)
    folder.mkdir(exist_ok=True)
    shared, near = engine.checkpoints.shared, engine.checkpoints.local
    digest = engine.weights_digest()
    shared.start_save(folder / "shared", step=step, state={"run_id": "r"}, keep=Retention(1))
    near.start_save(folder / "local", step=step, state={"run_id": "r"}, keep=Retention(1))
    saves = [*shared.finished(wait=True), *near.finished(wait=True)]
    result["save_errors"] = [one.error for one in saves]
    result["continued"] = train(engine, step, step + more)
    found, _, _ = find_newest_local(folder / "local", run_id="r", layout=sharding_signature(engine.settings))
    (path,) = (folder / "shared").glob("step-*")
    for name, store, checkpoint in (("shared", shared, verify_checkpoint(path)), ("local", near, found)):
        store.load(checkpoint)
        result[f"{name}_digest_equal"] = engine.weights_digest() == digest
        result[f"{name}_again"] = train(engine, step, step + more)


def run_one(run, out):
    engine = build(run)
    result = {"initial_weights": engine.weights_digest()}
    if run.get("load"):
        (path,) = (Path(run["load"]) / "shared").glob("step-*")
        checkpoint = verify_checkpoint(path)
        engine.checkpoints.shared.load(checkpoint)
        return {**result, **train(engine, checkpoint.step, checkpoint.step + run["steps"])}
    if run.get("generate"):
        result["logits"] = logits_of(engine)
        continued = generated(engine, PROMPTS, max_new_tokens=6)
        result["generated"] = [(c.tokens, c.log_probs) for c in continued]
        result["token_values"] = engine.token_values(batch_of_step(7, engine)).tolist()
    if run.get("rules"):
        result["rules"] = rules(engine)
    if run.get("gradients", True):
        engine.forward_backward(batch_of_step(0, engine))
        gradients = {name: value.numpy().copy() for name, value in engine.named_gradients()}
        np.savez(out / f"{run['name']}.{dist.get_rank()}.npz", **gradients)
        first = engine.optimizer_step(LEARNING_RATE)
        result |= train(engine, 1, run["steps"])
        result["losses"].insert(0, first.loss.mean)
        result["norms"].insert(0, first.gradient_norm)
        result["metrics"].insert(0, dict(first.loss.metrics))
    totals = engine.evaluate([batch_of_step(1000 + i, engine) for i in range(3)])
    result["evaluated"] = [totals.mean, totals.tokens]
    if run.get("save"):
        save(engine, run, result)
    result["final_weights"] = engine.weights_digest()
    if run.get("replicas"):
        result["replicas"] = replicas(engine)
    return result


def work(rank, i, runs_file, folder, out):
    """One rank of run `i`."""
    torch.set_num_threads(1)
    megatron_on_cpu.install()
    run = json.loads(Path(runs_file).read_text())[int(i)]
    store = dist.FileStore(f"{folder}/store", run["world_size"])
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=run["world_size"], timeout=timedelta(seconds=300)
    )
    result = run_one(run, Path(out))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        assert all(math.isfinite(loss) for loss in result["losses"])
        Path(out, f"{run['name']}.json").write_text(json.dumps(result))


def main():
    runs_file, out = sys.argv[1:]
    runs = json.loads(Path(runs_file).read_text())
    megatron = ("distributed", "models.gpt", "optimizer", "pipeline_parallel")
    preload = ["parallel.engines.megatron_core", "launch.processes.local_ranks"]
    context = fork_server([*preload, *(f"megatron.core.{part}" for part in megatron)])
    with tempfile.TemporaryDirectory() as temporary:
        for i, run in enumerate(runs):
            folder = Path(temporary, str(i))
            folder.mkdir()
            arguments = [str(i), runs_file, str(folder), out]
            run_ranks(context, work, arguments, nproc=run["world_size"], logs=folder / "logs")
            print(run["name"], flush=True)


if __name__ == "__main__":
    main()
