"""Run with fake_cuda.so preloaded: a training step of rank 0 of each layout on fake CUDA tensors.

    LD_PRELOAD=libfake_cuda.so python cuda_step_ranks.py JOBS.json RESULTS.json

A job is {"ranks", "parallel", "model", "objective", "document_mask", "compare"}; the results are in the same order.
With "compare", the step also runs on fake tensors of the CPU.
"""

import json
import multiprocessing
import sys
import traceback
from pathlib import Path
from typing import Any, cast

import torch
import torch._dynamo  # here, and not in each layout's process
import torch.nn.attention.flex_attention
from fake_cuda import Watch, pretend
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.sampling import made_up_samples
from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from launch.config.objectives import OBJECTIVES
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.layout.mesh import build_mesh
from parallel.planner.dry_run import MeasurableEngine, _fake_batch, _FakeScalars, fake_process_group
from parallel.planner.traffic import CollectiveCounter

torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # no compiler sees fake tensors
SEQ_LEN, SEQUENCES = 64, 4
MODEL = {"vocab_size": 512, "n_ctx": SEQ_LEN, "n_layers": 4, "d_model": 64, "n_heads": 4}


def step(job: dict[str, Any], device: str) -> dict[str, Any]:
    """What a step does on this device: the tensors' devices, host waits, operators, traffic."""
    model, parallel = ModelConfig(**MODEL | job.get("model", {})), ParallelConfig(**job["parallel"])
    batch = BatchConfig(micro_batch_size=1, global_batch_tokens=SEQ_LEN * SEQUENCES)
    layout = resolve_layout(parallel, batch, model=model, seq_len=SEQ_LEN, world_size=job["ranks"])
    optimizer = OptimizerConfig(learning_rate=1e-3)
    settings = EngineSettings(
        model=model, parallel=parallel, layout=layout, optimizer=optimizer, micro_batch_size=1, seed=1
    )
    kind = job.get("objective", {"kind": "next_token"})
    objective = OBJECTIVES[kind["kind"]](**kind).build(z_loss=0.0)
    streams = dict.fromkeys(objective.streams, "s")
    data = DataConfig(
        tokenizer="x",
        train=(CorpusConfig(path="a", streams=streams),),
        seq_len=SEQ_LEN,
        document_mask=job.get("document_mask", False),
    )
    sites: list[tuple[str, str]] = []
    if device == "cuda":
        pretend(sites)
    with fake_process_group(0, job["ranks"]):
        mesh = build_mesh(layout, torch.device(device, 0) if device == "cuda" else torch.device(device))
        real = objective.batch(made_up_samples(layout.micro_batches, data))
        with FakeTensorMode(allow_non_fake_inputs=True), _FakeScalars():
            built = build_engine(settings, objective=objective, device=mesh.device, init_weights=False, mesh=mesh)
            engine, fake = cast(MeasurableEngine, built), _fake_batch(real)
            engine.forward_backward(fake)  # the first step agrees on shapes, and makes the optimizer's state
            engine.optimizer_step(1e-3)
            sites.clear()
            with CollectiveCounter(mesh) as counter, Watch(sites) as watch:
                engine.forward_backward(fake)
                engine.optimizer_step(1e-3)
            state = engine.optimizer.all_tensors()
            tensors = [*(parameter for _, parameter in engine.parameters), *state]
    return {
        "devices": sorted({tensor.device.type for tensor in tensors}),
        "waits": sorted({(what, where) for what, where in sites}),
        "operators": watch.operators,
        "traffic": sorted([kind.axis, kind.kind, kind.ranks, t.count, t.bytes] for kind, t in counter.traffic.items()),
    }


def run(job: dict[str, Any], sender: Any, device: str) -> None:
    try:
        sender.send(step(job, device))
    except BaseException:
        sender.send({"error": traceback.format_exc()[-4000:]})


def main(jobs: Path, results: Path) -> None:
    found = []
    fork = multiprocessing.get_context("fork")  # DTensor remembers groups that were destroyed: a process a layout
    for job in json.loads(jobs.read_text()):
        found.append({})
        for device in ("cuda", "cpu") if job.get("compare") else ("cuda",):
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=run, args=(job, sender, device))
            process.start()
            sender.close()
            found[-1][device] = receiver.recv()
            process.join()
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
