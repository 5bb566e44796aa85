"""A rank that asks an engine for the values of tokens, and compares them with those that its loss sees in training."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from layout_runs import OPTIMIZER, SEQUENCES, batch_of_step, settings_of

from gpt.losses.base import LossTotals
from gpt.losses.batch import counted_targets
from gpt.losses.marks import IGNORE
from gpt.losses.token_log_probs import token_log_probs
from gpt.training.objective import NextToken
from parallel.engines.choose import build_engine

MASKED_ROW = 3  # of the whole batch: the loss does not count


class SeenLogProbs:
    """Next-token loss that keeps the log-probabilities of each micro-batch of training."""

    metric_names = evaluation_names = ()

    def __init__(self):
        self.seen = []

    def __call__(self, outputs, batch):
        targets = counted_targets(batch)
        values = token_log_probs(outputs, targets)
        self.seen.append(values.detach().clone())
        return LossTotals(-values.sum(), (targets != IGNORE).sum(), -values.detach().sum(), {})

    def values(self, outputs, batch):
        return token_log_probs(outputs, counted_targets(batch))


class Watched(NextToken):
    def loss(self, *, compile):
        return SeenLogProbs()


def rows_of_rank(step, engine):
    share = SEQUENCES // engine.data_size
    first = engine.data_rank * share
    batch = batch_of_step(step, slice(first, first + share), documents=True)
    return batch.without_rows([MASKED_ROW - first] if first <= MASKED_ROW < first + share else [])


def compare(engines, *, evaluates):
    """The values of two steps, compared with those that the loss sees. Only the first engine is asked for them, and
    training must not change by that."""
    found = []
    for step in range(2):
        batch = rows_of_rank(step, engines[0])
        values = engines[0].token_values(batch)
        found.append(values)
        results = []
        for engine in engines:
            engine.loss.seen.clear()
            engine.forward_backward(batch)
            if engine.loss.seen:  # on the last stage
                assert torch.equal(torch.cat(engine.loss.seen), values), "not the values of the training forward"
            results.append(engine.optimizer_step(OPTIMIZER.learning_rate))
        assert len(set(map(str, results))) == 1, "token_values changed training"
        if evaluates:
            engines[0].evaluate([batch])
    assert len({engine.weights_digest() for engine in engines}) == 1
    return found


def token_values_of_ranks(rank, run, folder):
    """Rank 0 writes the values of all rows at both steps to values.json, and last those of an engine without
    optimizer. A run that is `compiled` has only the engine itself, since each form of the code takes long to compile.
    """
    run = json.loads(run)
    torch.set_num_threads(1)
    world_size = run["world_size"]
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=90))
    settings = settings_of(run)
    options = {"objective": Watched(), "device": torch.device("cpu")}
    engine = build_engine(settings, **options)
    if settings.parallel.compile:
        found = compare([engine], evaluates=False)
    else:
        plain = build_engine(settings, **options, mesh=engine.mesh)
        frozen = build_engine(replace(settings, optimizer=None), **options, mesh=engine.mesh)
        found = compare([engine, plain], evaluates=True)
        found.append(frozen.token_values(rows_of_rank(0, frozen)))
    everyone = [None] * world_size
    dist.all_gather_object(everyone, (engine.data_rank, found))
    if rank == 0:
        of_data_rank = {}
        for data_rank, values in everyone:
            first = of_data_rank.setdefault(data_rank, values)
            assert all(torch.equal(a, b) for a, b in zip(first, values, strict=True)), "ranks of a data rank differ"
        rows = [torch.cat([of_data_rank[r][i] for r in sorted(of_data_rank)]).tolist() for i in range(len(found))]
        Path(folder, "values.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()
