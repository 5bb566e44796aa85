"""The pipeline's stages in Megatron's words. tests/parallel/engines/test_megatron_core.py trains the models."""

import dataclasses

from parallel.layout.layout import Layout
from parallel.megatron.model import pipeline_layout

LAYOUT = Layout(tensor=1, pipeline=2, data=1, data_shard=1, micro_batches=2, split=(1, 2), v_shaped=False)


def test_stages_run_from_the_embedding_to_the_loss():
    assert pipeline_layout(LAYOUT) == [["embedding", "decoder"], ["decoder", "decoder", "loss"]]


def test_the_first_and_the_last_stage_may_hold_no_block():
    layout = dataclasses.replace(LAYOUT, split=(0, 1, 2, 0))
    assert pipeline_layout(layout) == [["embedding"], ["decoder"], ["decoder", "decoder"], ["loss"]]
