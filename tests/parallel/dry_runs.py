"""What the tests of the planner share: settings of small layouts, and dry runs in processes of their own."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import torch

from gpt.data.config import CorpusConfig, DataConfig
from gpt.losses.base import LossTotals
from gpt.model.config import ModelConfig
from gpt.model.heads import ScalarHead
from gpt.model.masks import AttentionMask
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.dry_run import measure_rank

LAUNCH_TIMEOUT_S = 600  # of real processes, and again of dry runs; a hung collective times out after 90 s
# A model whose sizes every layout divides, and layouts by name: (parallel, processes, micro-batches)
B, T, D, LAYERS, VOCAB, FF = 2, 32, 64, 4, 256, 256
BOOK = {
    "tensor": ({"tensor": 4}, 4, 2),
    "tensor, whole sequences": ({"tensor": 4, "sequence_parallel": False}, 4, 2),
    "zero 0": ({"zero_stage": 0}, 4, 2),
    "zero 1": ({"zero_stage": 1}, 4, 2),
    "zero 2": ({"zero_stage": 2}, 4, 2),
    "zero 3": ({"zero_stage": 3}, 4, 3),
    "hybrid": ({"zero_stage": 3, "data_shard": 4}, 8, 2),
    "three axes": ({"tensor": 2, "pipeline": 4, "split": (1, 1, 1, 1)}, 32, 5),
    "three axes, zero 2": ({"tensor": 2, "pipeline": 2, "zero_stage": 2, "split": (2, 2)}, 8, 3),
    "three axes, zero 3": ({"tensor": 2, "pipeline": 2, "zero_stage": 3, "split": (2, 2)}, 8, 3),
}
# Ranks of the first, a middle and the last stage. With one stage, all ranks do the same.
RANKS = {name: (0, 17, 31) if name == "three axes" else (0, 7) if "axes" in name else (0,) for name in BOOK}


def book_settings(name, *, micro_batches=None):
    parallel, size, usual = BOOK[name]
    config = ParallelConfig(**parallel)
    model = ModelConfig(VOCAB, T, LAYERS, D, n_heads=8)
    data = size // (config.tensor * config.pipeline)
    batch = BatchConfig(B, B * T * data * (micro_batches or usual))
    layout = resolve_layout(config, batch, model=model, seq_len=T, world_size=size)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), B, seed=1)


@dataclass(frozen=True)
class Labels(NextToken):
    """Predict a label of each document from a stream, with full attention. The loss needs a mask and extra tensors."""

    def batch(self, samples):
        usual = super().batch(samples)
        label = torch.from_numpy(samples.streams["label"][:, 0]).double()
        return replace(usual, targets=label[:, None], loss_mask=usual.segment_ids == 0, extra={"label": label})

    def head(self, config):
        return ScalarHead(config)

    def loss(self, *, compile):
        return LabelLoss()

    def attention_mask(self, batch):
        return AttentionMask("full", segment_ids=batch.segment_ids)


class LabelLoss:
    metric_names = evaluation_names = ()

    def __call__(self, outputs, batch):
        errors = (outputs[..., 0].float() - batch.extra["label"][:, None]) * batch.loss_mask
        total = errors.square().sum()
        return LossTotals(total, batch.loss_mask.sum(), total.detach(), {})


def data_of(length, *, streams=("label",), **settings):
    """The [data] section of a recipe whose files do not exist."""
    train = (CorpusConfig("/nowhere", streams={name: f"/nowhere/{name}" for name in streams}),)
    return DataConfig(tokenizer="none", train=train, seq_len=length, **settings)


def run_all(jobs, objective=NextToken(), **settings):  # noqa: B008  frozen
    """Run each job (settings, rank, sequence length, runs) in a new process; the reports, by the keys of the jobs."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["parallel.planner.dry_run"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        work = {
            key: pool.submit(
                measure_rank, engine, rank=rank, data=data_of(length, **settings), objective=objective, runs=runs
            )
            for key, (engine, rank, length, runs) in jobs.items()
        }
        return {key: job.result(timeout=LAUNCH_TIMEOUT_S) for key, job in work.items()}
