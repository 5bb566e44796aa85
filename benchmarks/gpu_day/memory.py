"""The parts on memory: the dry run against the allocator, and saves through page-locked host memory."""

import gc
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from engines import batches, build, one_process, settings_of
from job import Check, Job, LeftOut, finish, holds

from gpt.data.config import CorpusConfig, DataConfig
from gpt.model.config import ModelConfig
from gpt.model.gpt3_sizes import shape_of_parameters
from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from launch.processes.local_ranks import fork_server
from parallel.engines.settings import EngineSettings
from parallel.planner.dry_run import RankReport, held_bytes, measure_rank

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)


def model_of(job: Job) -> ModelConfig:
    if job.tiny:
        return ModelConfig(vocab_size=256, n_ctx=32, n_layers=2, d_model=64, n_heads=2)
    return shape_of_parameters(125e6, vocab_size=50_257, n_ctx=1024)


def dry_run(settings: EngineSettings) -> RankReport:
    """The dry run of rank 0, in a process of its own."""
    data = DataConfig(tokenizer="-", train=(CorpusConfig(path="-"),), seq_len=settings.model.n_ctx)
    context = fork_server(["parallel.planner.dry_run"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        work = partial(measure_rank, settings, rank=0, data=data, objective=NextToken())
        return pool.submit(work).result()


def memory(job: Job) -> Iterator[Check]:
    """What the dry run says a rank holds, against the engine's tensors, and on a GPU its peak against the allocator."""
    model = model_of(job)
    make = partial(settings_of, model, micro_batch_size=4, sequences=8, optimizer=OPTIMIZER)
    cases = {
        "bf16": make(precision="bf16"),
        "fp32": make(precision="fp32"),
        "bf16, ZeRO 3": make(precision="bf16", zero_stage=3),
        "bf16, selective recomputation": make(precision="bf16", recompute="selective"),
        "bf16, full recomputation": make(precision="bf16", recompute="full"),
    }
    planned = {name: dry_run(settings) for name, settings in cases.items()}
    with one_process(job.device):
        for name, settings in cases.items():
            yield from measured(job, name, settings, planned[name])
        if job.on_gpu:
            compiled = make(precision="bf16", compile=True)
            peak = peak_bytes(job, compiled)[1]
            plain = planned["bf16"].peak_bytes
            yield Check("compiled: peak / dry run without compile", peak / plain, 1.05, note=f"{peak / 2**20:,.0f} MiB")


def measured(job: Job, name: str, settings: EngineSettings, plan: RankReport) -> Iterator[Check]:
    held, peak = peak_bytes(job, settings)
    wrong = {key: (held[key], getattr(plan, key)) for key in held if held[key] != getattr(plan, key)}
    yield holds(f"{name}: bytes of weights, gradients, optimizer equal the dry run's", not wrong, str(wrong or ""))
    if job.on_gpu:
        apart = abs(peak - plan.peak_bytes) / plan.peak_bytes
        note = f"{peak / 2**20:,.0f} MiB, dry run {plan.peak_bytes / 2**20:,.0f} MiB"
        yield Check(f"{name}: peak of the allocator", apart, 0.05, "from the dry run", note)


def peak_bytes(job: Job, settings: EngineSettings) -> tuple[dict[str, int], int]:
    """What the engine holds with gradients, and on a GPU the allocator's peak in the second step; 0 on a CPU.

    The peak includes cuBLAS's workspace, 32 MiB on an H100.
    """
    torch.compiler.reset()
    before = 0
    if job.on_gpu:
        gc.collect()  # engines hold themselves in reference cycles
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(job.device)
    engine, source = build(settings, job.device), batches(settings.model, settings.layout.micro_batches * 4)
    held = {}
    for step in range(2):
        finish(job.device)
        if job.on_gpu and step == 1:
            torch.cuda.reset_peak_memory_stats(job.device)
        engine.forward_backward(next(source))
        held = held_bytes(engine)
        engine.optimizer_step(OPTIMIZER.learning_rate)
    finish(job.device)
    peak = torch.cuda.max_memory_allocated(job.device) - before if job.on_gpu else 0
    return held, peak


def checkpoint(job: Job) -> Iterator[Check]:
    """Background saves: how long training waits, and that another engine loads the same bits."""
    model = model_of(job)
    if not job.tiny and not job.on_gpu:
        raise LeftOut("it saves 1.5 GB; on a CPU use --tiny")
    settings = settings_of(model, micro_batch_size=4, sequences=4, optimizer=OPTIMIZER, precision="bf16")
    folder, source = job.folder / "checkpoints", batches(model, 4)
    shutil.rmtree(folder, ignore_errors=True)
    with one_process(job.device):
        engine, digests = build(settings, job.device), {}
        for step in range(1, 4):
            engine.forward_backward(next(source))
            engine.optimizer_step(OPTIMIZER.learning_rate)
            digests[step] = engine.weights_digest()
            engine.checkpoints.shared.start_save(folder, step=step, state={}, keep=Retention(3))
            if step < 3:
                engine.forward_backward(next(source))  # the update overwrites the tensors during the save
                engine.optimizer_step(OPTIMIZER.learning_rate)
        results = engine.checkpoints.shared.finished(wait=True)
        yield holds("every save succeeds", all(r.error is None for r in results), str([r.error for r in results]))
        last = results[-1]
        size_gb = last.bytes / 1e9
        yield Check("size", size_gb, unit="GB")
        yield Check("training waits for the last save", last.stall_s, unit="s", note="the first also allocates memory")
        yield Check(
            "copy to host memory", size_gb / last.stall_s, unit="GB/s", note="includes the wait for the save before"
        )
        yield Check("write", size_gb / last.write_s, unit="GB/s")
        other = build(settings, job.device)
        for step, digest in digests.items():
            other.checkpoints.shared.load_newest(folder, at_most=step)
            yield holds(f"step {step} loads with the same bits", other.weights_digest() == digest)
