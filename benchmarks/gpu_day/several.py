"""The parts for several GPUs: every layout against one process, its speed, and what its communication hides behind."""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from engines import batches, build, settings_of
from job import Check, Job, LeftOut, finish, holds, triaxial
from runs import recipe

from gpt.files.json_files import read_json_object
from gpt.model.attention import kernel_order
from gpt.model.config import ModelConfig
from gpt.model.gpt3_sizes import shape_of_parameters
from gpt.training.optimizer import OptimizerConfig
from launch.processes.local_ranks import fork_server, run_ranks
from launch.processes.sealing import seal_object_collectives
from parallel.agreement import wait_for_all
from parallel.health.stragglers import step_profile, waiting_s
from parallel.layout.gloo_groups import use_one_gloo_worker

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
TIMED_STEPS = 5


def ranks_of(job: Job) -> int:
    """All GPUs of this machine, at most 8 and a power of 2; 2 processes on a CPU."""
    n = torch.cuda.device_count() if job.on_gpu else 2
    if n < 2:
        raise LeftOut("it needs two or more GPUs")
    return 1 << (min(n, 8).bit_length() - 1)


def layouts(n: int) -> dict[str, dict[str, object]]:
    """Layouts of n ranks by name, as keys of [parallel]."""
    found: dict[str, dict[str, object]] = {
        f"tensor {n}": {"tensor": n},
        f"pipeline {n}": {"pipeline": n},
        f"data {n}, ZeRO 1": {"data": n, "zero_stage": 1},
        f"data {n}, ZeRO 3": {"data": n, "zero_stage": 3},
    }
    if n >= 4:
        found[f"data {n}, hybrid shards of 2"] = {"data": n, "data_shard": 2, "zero_stage": 3}
        found[f"tensor 2, pipeline 2, data {n // 4}"] = {"tensor": 2, "pipeline": 2, "data": n // 4}
    return found


def parity(job: Job) -> Iterator[Check]:
    """`triaxial parity`: every layout trains the model of one process, in fp32."""
    n = ranks_of(job)
    # heads and layers of the recipe are 4, so that no axis is longer
    words = [f"--layout={','.join(f'{k}={v}' for k, v in keys.items())}" for keys in layouts(min(n, 4)).values()]
    status = triaxial(job, "parity", recipe(job), *words, "--steps", 5, "--output", job.folder, "--run.device",
                      job.device.type, "--batch.micro_batch_size", 1, check=False, log="parity.log")  # fmt: skip
    yield holds("every layout agrees with one process", status == 0, f"see {job.folder.name}/parity.html")
    rows = read_json_object(job.folder / "parity.json").get("layouts", [])
    yield Check("layouts compared", len(rows))


def overlap(job: Job) -> Iterator[Check]:
    """Tokens a second of each layout in bf16, and the share of a step in which nothing but communication ran."""
    n = ranks_of(job)
    for name, keys in layouts(n).items():
        folder = job.folder / name.replace(", ", "_").replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        task = {"device": job.device.type, "n": n, "tiny": job.tiny, "keys": keys}
        (folder / "task.json").write_text(json.dumps(task))
        (folder / "store").unlink(missing_ok=True)
        logs = folder / f"logs_{time.time():.0f}"
        run_ranks(fork_server(["several"]), measure, [str(folder)], nproc=n, logs=logs)
        found = read_json_object(folder / "result.json")
        yield Check(f"{name}: speed", found["tokens_per_s"], unit="tokens/s", note=f"{found['parameters'] / 1e6:,.0f}M")
        yield Check(f"{name}: exposed communication", found["exposed"], 1.0, "of the step", "see trace.json there")


def model_of(tiny: bool) -> ModelConfig:
    if tiny:
        return ModelConfig(vocab_size=256, n_ctx=32, n_layers=4, d_model=64, n_heads=4)
    return shape_of_parameters(350e6, vocab_size=50_257, n_ctx=1024)


def measure(rank: int, folder: str) -> None:
    """One rank of a layout: warm up, time steps, profile one. Rank 0 writes result.json and trace.json."""
    task = read_json_object(Path(folder, "task.json"))
    n, device = task["n"], torch.device(task["device"])
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    seal_object_collectives()
    use_one_gloo_worker()
    store = dist.FileStore(str(Path(folder, "store")), n)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=n)
    model = model_of(task["tiny"])
    sequences = 4 if task["tiny"] else 32
    settings = settings_of(
        model, micro_batch_size=1, sequences=sequences, optimizer=OPTIMIZER, world_size=n, precision="bf16",
        compile=not task["tiny"], **task["keys"]
    )  # fmt: skip
    engine, source = build(settings, device), batches(model, sequences)

    def step() -> float:
        mine = next(source)
        share = len(mine) // engine.data_size
        part = list(mine.split(share))[engine.data_rank]
        finish(device)
        wait_for_all()
        started_at = time.perf_counter()
        engine.forward_backward(part)
        engine.optimizer_step(OPTIMIZER.learning_rate)
        finish(device)
        return time.perf_counter() - started_at

    with kernel_order(device):
        spans = [step() for _ in range(3 + TIMED_STEPS)][3:]
        with step_profile(device) as seen:
            profiled_s = step()
    if rank == 0:
        seen.export_chrome_trace(str(Path(folder, "trace.json")))
        result = {
            "tokens_per_s": sequences * model.n_ctx / statistics.median(spans),
            "exposed": waiting_s(seen, device) / profiled_s,
            "parameters": model.parameters,
        }
        Path(folder, "result.json").write_text(json.dumps(result))
    wait_for_all()
    dist.destroy_process_group()
