"""Which settings and numbers of micro-batches a pipeline schedule accepts, compared with torch's own schedules."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

from gpt.errors import ConfigError
from parallel.axes import pipeline_parallel
from parallel.layout.config import ParallelConfig, splits_backward
from parallel.layout.pipeline_rules import stages_per_rank


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"pipeline": 2, "schedule": "interleaved_1f1b", "stages_per_rank": 1},
            "stages_per_rank = 1 with parallel.schedule = 'interleaved_1f1b' .*Use 2, or parallel.schedule = '1f1b'",
        ),
        (
            {"pipeline": 2, "stages_per_rank": 2},
            "= 2 with parallel.schedule = '1f1b' is invalid: this schedule runs 1 stage a rank. Use 1",
        ),
        (
            {"pipeline": 2, "stages_per_rank": 3, "schedule": "dualpipev"},
            "= 3 with parallel.schedule = 'dualpipev' is invalid: this schedule lays 2 stages a rank out as a V. Use 2",
        ),
        (
            {"pipeline": 4, "micro": 32, "world_size": 4, "tokens": 2048 * 7 * 32, "schedule": "dualpipev"},
            "needs at least as many micro-batches a step as stages: 7 .*nearest: 8, so batch.global_batch_tokens = "
            + str(2048 * 8 * 32),
        ),
        (
            {"pipeline": 4, "micro": 32, "world_size": 4, "tokens": 2048 * 9 * 32, "schedule": "interleaved_1f1b"},
            f"a multiple of its quotient by parallel.pipeline: 9 .*nearest: 8 or 10, so batch.global_batch_tokens = "
            f"{2048 * 8 * 32} or {2048 * 10 * 32}",
        ),
        (
            {"pipeline": 4, "micro": 64, "world_size": 4, "tokens": 262_144},
            "needs at least as many micro-batches a step as stages: 2 with parallel.pipeline = 4 .*nearest: 4",
        ),
        (
            {"pipeline": 2, "schedule": "zbv_zero_bubble", "compile": True},
            "= true with parallel.schedule = 'zbv_zero_bubble' .*the backward of a compiled block cannot be split",
        ),
        (
            {"pipeline": 2, "schedule": "interleaved_zero_bubble", "recompute": "full"},
            "= 'full' with parallel.schedule = 'interleaved_zero_bubble' .* recompute a block once for each",
        ),
        (
            {"pipeline": 2, "schedule": "zbv_zero_bubble", "recompute": "selective"},
            "= 'selective' with parallel.schedule = 'zbv_zero_bubble' .*torch allows one backward to use",
        ),
    ],
)
def test_errors_name_key_value_rule_and_nearest_values(resolve, keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**keys)


def test_the_default_number_of_stages_follows_the_schedule():
    assert stages_per_rank(ParallelConfig(pipeline=2)) == 1
    assert stages_per_rank(ParallelConfig(pipeline=2, schedule="interleaved_1f1b")) == 2
    assert stages_per_rank(ParallelConfig(pipeline=2, schedule="interleaved_1f1b", stages_per_rank=4)) == 4
    assert stages_per_rank(ParallelConfig(schedule="interleaved_1f1b")) == 1, "without a pipeline"


@pytest.mark.parametrize(
    ("splits", "keys"),
    [
        (True, {"schedule": "zbv_zero_bubble"}),
        (True, {"schedule": "interleaved_zero_bubble"}),
        (True, {"schedule": "dualpipev"}),
        (False, {"schedule": "dualpipev", "compile": True}),
        (False, {"schedule": "dualpipev", "recompute": "selective"}),
        (False, {"schedule": "zbv_zero_bubble", "pipeline": 1}),
        (False, {"schedule": "1f1b"}),
        (False, {"schedule": "gpipe"}),
        (False, {"schedule": "interleaved_1f1b"}),
    ],
)
def test_only_some_layouts_split_backward(splits, keys):
    assert splits_backward(ParallelConfig(**{"pipeline": 2, **keys})) is splits


@pytest.mark.parametrize("schedule", [*pipeline_parallel.SINGLE, *pipeline_parallel.MULTI])
def test_we_refuse_a_number_of_micro_batches_exactly_where_torch_does(resolve, schedule):
    """Also, torch's schedule expects on each rank the stages that the layout gives it."""
    for ranks in (2, 3, 4):
        for micro_batches in range(1, 4 * ranks):
            try:
                layout = resolve(
                    world_size=ranks, pipeline=ranks, micro=1, tokens=2048 * micro_batches, schedule=schedule
                )
            except ConfigError:
                layout = None
            stages = resolve(world_size=ranks, pipeline=ranks, micro=1, tokens=2048 * 8, schedule=schedule)
            accepted = built_by_torch(schedule, ranks, micro_batches, stages=stages)
            assert (layout is not None) == accepted, (ranks, micro_batches)


def built_by_torch(schedule, ranks, micro_batches, *, stages):
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=ranks)
    try:
        mine = [
            PipelineStage(torch.nn.Linear(1, 1), index, stages.stages, torch.device("cpu"))
            for index in stages.stages_of(1)
        ]
        if schedule in pipeline_parallel.SINGLE:
            pipeline_parallel.SINGLE[schedule](mine[0], micro_batches)
        else:
            built = pipeline_parallel.MULTI[schedule](mine, micro_batches)
            assert built.stage_index_to_group_rank == {s: stages.rank_of(s) for s in range(stages.stages)}
        return True
    except ValueError:
        return False
    finally:
        dist.destroy_process_group()
