"""The signature by which a rank knows whether its node-local shards still fit."""

import dataclasses
import json

from layout_runs import settings_of

from parallel.engines.settings import sharding_signature


def signature(world_size, **parallel):
    micro = 1 if world_size > 2 else 2
    return sharding_signature(settings_of({"world_size": world_size, "parallel": parallel, "micro_batch_size": micro}))


def test_every_way_of_sharding_has_its_own_signature():
    signatures = [
        signature(1),
        signature(2),
        signature(2, zero_stage=0),
        signature(2, zero_stage=3),
        signature(2, tensor=2),
        signature(2, pipeline=2),
        signature(2, pipeline=2, split=(1, 3)),
        signature(2, pipeline=2, schedule="zbv_zero_bubble", stages_per_rank=2),
        signature(4, data_shard=2),
        signature(2, engine="deepspeed"),
        signature(2, engine="megatron"),
    ]
    written = [json.dumps(found) for found in signatures]
    assert len(set(written)) == len(written)
    assert [json.loads(text) for text in written] == signatures, "plain JSON values"


def test_what_moves_no_element_does_not_count():
    settings = settings_of({"world_size": 2, "parallel": {}})
    others = [
        dataclasses.replace(settings, seed=9),
        dataclasses.replace(settings, parallel=dataclasses.replace(settings.parallel, recompute="full", compile=True)),
        dataclasses.replace(settings, parallel=dataclasses.replace(settings.parallel, precision="bf16")),
    ]
    assert all(sharding_signature(other) == sharding_signature(settings) for other in others)
