"""The memory of a PPO run besides the policy's."""

import pytest

from launch.config.run_config import layout_of, read_run_config
from launch.post_training.price import dry_run_notes, rollout_bytes, weights_bytes


def test_the_largest_recipe_is_priced() -> None:
    """175B parameters in fp32 over 64 ranks are 10.9 GB a rank, to 5%; keys and values by the formula."""
    config = read_run_config("ppo_175b", [])
    layout = layout_of(config, 64)
    assert weights_bytes(config.model, layout, config) == pytest.approx(config.model.parameters * 4 / 64, rel=0.05)
    # keys and values x rows x positions x heads of a tensor rank x width x layers of a stage x bf16
    assert rollout_bytes(config, layout) == 2 * 64 * 3072 * 12 * 128 * 12 * 2
    first, second, *rest = [line for line in dry_run_notes(config, layout) if line]
    assert first.startswith("besides the policy, a rank keeps: reference 10")
    assert "average" in first
    assert "64 sequences at a time" in second
    assert [line.partition(":")[0] for line in rest] == ["not counted", "not counted"], "the runs are not there"


def test_shards_and_host_memory_count() -> None:
    config = read_run_config("ppo_1.3b", ["--objective.offload", '["reference"]'])
    one, eight = layout_of(config, 1), layout_of(config, 8)
    assert weights_bytes(config.model, one, config) == pytest.approx(config.model.parameters * 4, rel=1e-6)
    assert weights_bytes(config.model, eight, config) == pytest.approx(config.model.parameters / 2, rel=1e-6)
    (line,) = [line for line in dry_run_notes(config, eight) if line.startswith("besides")]
    assert "(host memory)" in line
