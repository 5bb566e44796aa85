"""The choice of layouts for a number of processes: all sizes, all pairs of modes, and reasons for the others."""

import itertools
import typing
from dataclasses import replace

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.search import NOT_TRIED, Workload, choose_layouts, fit_micro_batch, layout_text

MODEL = ModelConfig(vocab_size=512, n_ctx=64, n_layers=8, d_model=32, n_heads=8)
WORKLOAD = Workload(MODEL, BatchConfig(2, 16 * 64), 64, "cuda")


@pytest.fixture(scope="module")
def chosen():
    return choose_layouts(8, WORKLOAD, precision="fp32", engine="native")


def test_every_possible_size_appears(chosen):
    sizes = {(c.parallel.tensor, c.parallel.pipeline, c.parallel.data) for c in chosen[0]}
    powers = (1, 2, 4, 8)
    assert {s for s in itertools.product(powers, repeat=3) if s[0] * s[1] * s[2] <= 8} <= sizes
    assert all(choice.world_size <= 8 for choice in chosen[0])


def test_no_layout_appears_twice_and_none_is_the_reference(chosen):
    names = [layout_text(choice.parallel) for choice in chosen[0]]
    assert len(set(names)) == len(names) >= 24
    assert "one process" not in names


def test_every_mode_appears(chosen):
    """The modes come from the type, so a new schedule or kind of recomputation is covered without a change here."""
    for key, hint in typing.get_type_hints(ParallelConfig).items():
        if typing.get_origin(hint) is typing.Literal and key not in NOT_TRIED:
            assert {getattr(c.parallel, key) for c in chosen[0]} == set(typing.get_args(hint)), key
    assert any(c.parallel.data_shard == 2 and c.parallel.data == 4 for c in chosen[0]), "hybrid"


def test_modes_are_combined_with_each_other_on_all_axes(chosen):
    layouts = [choice.parallel for choice in chosen[0]]
    for recompute, stage in itertools.product(("none", "full"), (0, 1, 2, 3)):
        assert any(p.recompute == recompute and p.zero_stage == stage and p.data > 1 for p in layouts)
    assert any(p.tensor > 1 and p.schedule == "gpipe" and p.pipeline > 1 for p in layouts)
    assert any(p.tensor > 1 and p.zero_stage == 3 and p.data > 1 for p in layouts)


def test_every_chosen_layout_is_valid(chosen):
    for choice in chosen[0]:
        batch = BatchConfig(choice.micro_batch_size, WORKLOAD.batch.global_batch_tokens)
        assert choice.micro_batch_size <= WORKLOAD.batch.micro_batch_size
        resolve_layout(choice.parallel, batch, model=MODEL, seq_len=64, world_size=choice.world_size)


def test_impossible_sizes_and_modes_have_a_reason(chosen):
    reasons = {skipped.layout: skipped.reason for skipped in chosen[1]}
    assert "parallel.tensor = 3 is invalid: must divide model.n_heads = 8" in reasons["tensor=3"]
    assert "3 sequences, which does not divide" in reasons["data=3"]
    one_micro_batch = Workload(MODEL, BatchConfig(1, 64), 64, "cpu")
    choices, skipped = choose_layouts(2, one_micro_batch, precision="fp32", engine="native")
    assert "needs at least as many micro-batches" in next(s.reason for s in skipped if s.layout == "schedule=1f1b")
    assert any(choice.parallel.schedule == "gpipe" for choice in choices)


def test_modes_that_need_cuda_are_skipped_on_a_cpu(chosen):
    assert any(choice.parallel.offload for choice in chosen[0])
    choices, skipped = choose_layouts(2, replace(WORKLOAD, device_type="cpu"), precision="fp32", engine="native")
    assert choices
    assert not any(choice.parallel.offload for choice in choices)
    assert "parallel.offload = true with device 'cpu'" in next(s.reason for s in skipped if s.layout == "offload=true")
    with pytest.raises(ConfigError, match=r"parallel.offload = true with device 'cpu'"):
        fit_micro_batch(ParallelConfig(offload=True), replace(WORKLOAD, device_type="cpu"))


def test_the_micro_batch_size_is_the_nearest_smaller_one_that_is_valid():
    workload = Workload(MODEL, BatchConfig(6, 16 * 64), 64, "cpu")
    assert fit_micro_batch(ParallelConfig(), workload).micro_batch_size == 4
    assert fit_micro_batch(ParallelConfig(data=8), workload).micro_batch_size == 2
    with pytest.raises(ConfigError, match=r"batch.micro_batch_size = 0 is invalid: must be at least 1"):
        fit_micro_batch(ParallelConfig(), Workload(MODEL, BatchConfig(0, 1024), 64, "cpu"))


def test_an_engines_layouts_are_those_that_it_takes():
    choices, skipped = choose_layouts(2, WORKLOAD, precision="fp32", engine="deepspeed")
    layouts = [choice.parallel for choice in choices]
    assert {parallel.engine for parallel in layouts} == {"deepspeed"}
    assert layouts[0].data == 1, "one process of another engine is not the reference"
    assert {parallel.zero_stage for parallel in layouts if parallel.data == 2} == {1, 2, 3}
    reasons = {each.layout: each.reason for each in skipped}
    assert reasons["tensor=2,engine=deepspeed"].startswith(
        'parallel.tensor = 2 is invalid with parallel.engine = "deep'
    )
    assert "zero_stage=0" in reasons
