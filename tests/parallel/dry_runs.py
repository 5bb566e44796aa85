"""What the tests of the planner share: settings of small layouts, and dry runs in processes of their own."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.dry_run import measure_rank

LAUNCH_TIMEOUT_S = 600  # of real processes, and again of dry runs; a hung collective ends by itself after 90 s
# A model whose sizes every layout divides, and layouts by name: (parallel, processes, micro-batches)
B, T, D, LAYERS, VOCAB, FF = 2, 32, 64, 4, 256, 256
BOOK = {
    "tensor": ({"tensor": 4}, 4, 2),
    "zero 0": ({"zero_stage": 0}, 4, 2),
    "zero 1": ({"zero_stage": 1}, 4, 2),
    "zero 2": ({"zero_stage": 2}, 4, 2),
    "zero 3": ({"zero_stage": 3}, 4, 3),
    "hybrid": ({"zero_stage": 3, "data_shard": 4}, 8, 2),
    "three axes": ({"tensor": 2, "pipeline": 4, "split": (1, 1, 1, 1)}, 32, 5),
}
# Ranks of the first, a middle and the last stage. With one stage, all ranks do the same.
RANKS = {name: (0, 17, 31) if name == "three axes" else (0,) for name in BOOK}


def book_settings(name, *, micro_batches=None):
    parallel, size, usual = BOOK[name]
    config = ParallelConfig(**parallel)
    model = ModelConfig(VOCAB, T, LAYERS, D, n_heads=8)
    data = size // (config.tensor * config.pipeline)
    batch = BatchConfig(B, B * T * data * (micro_batches or usual))
    layout = resolve_layout(config, batch, model=model, seq_len=T, world_size=size)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), B, seed=1)


def run_all(jobs):
    """Run each job (settings, rank, sequence length, runs) in a new process; the reports, by the keys of the jobs."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["parallel.planner.dry_run"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        work = {
            key: pool.submit(measure_rank, settings, rank=rank, seq_len=length, objective=NextToken(), runs=runs)
            for key, (settings, rank, length, runs) in jobs.items()
        }
        return {key: job.result(timeout=LAUNCH_TIMEOUT_S) for key, job in work.items()}
