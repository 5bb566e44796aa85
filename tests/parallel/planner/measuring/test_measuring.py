"""The measuring code times real kernels, real messages and real engines; no test asserts a time."""

import itertools
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel.layout.config import ParallelConfig
from parallel.planner.measuring import sections
from parallel.planner.measuring.collectives import collective_cases
from parallel.planner.measuring.engine_steps import TINY, EngineTask, alone_tasks, group_tasks, measure_samples
from parallel.planner.measuring.kernels import attention_cases, elementwise_cases, product_cases
from parallel.planner.measuring.rounds import Stopwatch, TimedCase, time_cases

CPU = torch.device("cpu")


def test_rounds_alternate_and_give_medians():
    order: list[str] = []
    cases = [TimedCase((partial(order.append, name),), partial(lambda name, s: (name, s), name)) for name in "ab"]
    watch = Stopwatch(CPU, processor=False)
    rows = time_cases(cases, watch, rounds=3)
    assert [name for name, _ in rows] == ["a", "b"]
    assert all(seconds >= 0 for _, seconds in rows)
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns == list("abababab")  # a first run that is not counted, and three rounds
    assert len(watch.spreads) == 2
    assert watch.waiting == 0.0  # the wall's time cannot tell


def test_kernels_compute_what_they_are_named_for():
    torch.manual_seed(0)
    cases = [case for case in product_cases(CPU, "fp32") if case.row(1.0).m == 64]
    for case in cases[:6]:
        row, out = case.row(1.0), case.parts[0]()
        assert (
            tuple(out.shape)
            == {
                "forward": (row.m, row.n),
                "input": (row.m, row.k),
                "weight": (row.n, row.k),
            }[row.side]
        )
    case = next(attention_cases(CPU, "fp32"))
    row = case.row(1.0, 2.0)
    assert (row.forward, row.backward) == (1.0, 2.0)
    assert case.parts[0]().shape == (1, row.heads, row.length, row.d_head)
    assert [grad.shape for grad in case.parts[1]()] == [(1, row.heads, row.length, row.d_head)] * 3
    copies = [case for case in elementwise_cases(CPU, "bf16") if case.row(1.0, 1.0).kind == "copy"]
    assert copies[0].parts[0]().dtype == torch.bfloat16
    sums = [copies[0].parts[1]() for _ in range(2)]
    assert sums[0].dtype == torch.float32
    assert sums[0].data_ptr() != sums[1].data_ptr()  # gradients are added in place, to sums that are in no cache
    assert sums[0].untyped_storage().nbytes() == sums[1].untyped_storage().nbytes() >= 2**26
    kinds = {case.row(1.0, 1.0).kind for case in elementwise_cases(CPU, "bf16")}
    assert kinds == {"layernorm", "rmsnorm", "gelu", "swiglu", "rope", "copy", "add"}


def test_every_sample_names_a_layout_that_the_rules_allow():
    """Each task of one process and of 2 and 4 ranks, without running it."""
    alone = alone_tasks(CPU, "bf16")
    assert len(alone) == 19
    weights = [12 * task.size.n_layers * task.size.d_model**2 for task in alone]
    assert max(weights) * 6 > 2**26  # with the sums of their gradients, more bytes than a CPU's caches hold
    rows = [task.size.micro_batch_size * task.size.seq_len for task in alone]
    assert sum(count >= 1024 for count in rows) >= 2  # kernels outweigh what each micro-batch does to all weights
    for ranks in (2, 4):
        tasks = group_tasks(CPU, "bf16", ranks)
        assert {task.parallel.schedule for task in tasks} >= {"1f1b", "interleaved_1f1b", "interleaved_zero_bubble"}
        assert {task.parallel.zero_stage for task in tasks if task.parallel.data == ranks} == {0, 1, 2, 3}
        assert any(task.parallel.tensor == ranks for task in tasks)


@pytest.mark.timeout(240)
def test_two_ranks_measure_messages_and_every_kind_of_layout(tmp_path):
    """One launch: sends between neighbours, tensor, ZeRO 3, a zero-bubble pipeline; one rank alone has phases too."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    assert (tmp_path / "done0").exists()


def _rank(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    watch = Stopwatch(CPU, processor=False)
    cases = [case for case in collective_cases(CPU, 2) if case.row(1.0).bytes == 2**14]
    assert {case.repeats for case in cases} == {16}  # the same on both ranks
    rows = time_cases(cases, watch, rounds=1)
    assert {row.kind for row in rows} == {"all_reduce", "all_gather", "reduce_scatter", "send"}
    assert all(row.seconds > 0 for row in rows)
    plain = ParallelConfig(precision="fp32")
    layouts = [
        {"tensor": 2, "data": 1},
        {"data": 2, "zero_stage": 3},
        {"pipeline": 2, "data": 1, "schedule": "interleaved_zero_bubble"},
    ]
    size = replace(TINY, n_layers=4)
    tasks = [EngineTask(size, ParallelConfig(**{**vars(plain), **layout}), 4) for layout in layouts]
    samples = list(measure_samples(tasks, CPU, watch, rounds=1))
    assert [(each.tensor, each.data, each.pipeline) for each in samples] == [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
    assert all(each.step > 0 and each.update > 0 and each.forward == 0 for each in samples)
    assert samples[2].job.split == samples[2].split
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    (alone,) = measure_samples([EngineTask(TINY, plain)], CPU, watch, rounds=1)
    assert min(alone.forward, alone.backward, alone.step, alone.update) > 0
    assert alone.tensors == 36  # 2 blocks of 16, the embedding, positions, the last norm's two
    assert set(sections.ROUNDS) == {"products", "attention", "elementwise", "collectives", "samples"}
    Path(folder, f"done{rank}").touch()
