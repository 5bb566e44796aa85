"""The dry run of a recipe with adapters: frozen weights have neither gradients nor optimizer state."""

import dataclasses
import math

import pytest
from dry_runs import LAUNCH_TIMEOUT_S, T, book_settings, run_all

from gpt.adapters.config import AdapterConfig, adapter_shapes
from gpt.model.parameter_shapes import parameter_shapes

pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S)
ADAPTER = AdapterConfig(rank=8)


def test_a_rank_holds_its_share_of_the_weights_and_the_state_of_the_adapters_alone():
    whole, settings = book_settings("zero 3"), book_settings("tensor")
    jobs = {
        ("zero 3", True): (dataclasses.replace(whole, adapter=ADAPTER), 0, T, None),
        ("zero 3", False): (whole, 0, T, None),
        ("tensor", True): (dataclasses.replace(settings, adapter=ADAPTER), 0, T, None),
    }
    reports = run_all(jobs)
    base = sum(map(math.prod, parameter_shapes(whole.model).values()))
    shapes = adapter_shapes(whole.model, ADAPTER)
    adapters = sum(map(math.prod, shapes.values()))
    over_data, without = reports["zero 3", True], reports["zero 3", False]
    assert over_data.parameter_bytes == (2 * base + 4 * adapters) / 4  # the base in bf16, 4 data ranks
    assert without.parameter_bytes == 4 * base / 4
    assert over_data.gradient_bytes == 4 * adapters / 4
    assert over_data.optimizer_bytes == 2 * 4 * adapters / 4 + 4 * len(shapes)  # AdamW's moments, a counter each
    assert over_data.peak_bytes < without.peak_bytes

    sharded = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if name.endswith(".a") == name.split(".")[3].startswith(("out", "down"))
    )
    over_tensor = reports["tensor", True]
    assert over_tensor.gradient_bytes == 4 * (adapters - sharded + sharded / 4)
    assert over_tensor.optimizer_bytes == 2 * over_tensor.gradient_bytes + 4 * len(shapes)
