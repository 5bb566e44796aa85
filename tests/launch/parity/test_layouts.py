"""The layouts of `triaxial parity` on several engines: which are trained, which are skipped and why."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig, read_run_config
from launch.parity.layouts import named_engines, on_engines, wanted_layouts, workload_of
from parallel.layout.config import ParallelConfig
from parallel.planner.search import layout_text

ENGINES: list[Any] = ["native", "deepspeed", "megatron"]


@pytest.fixture
def config(tiny_corpus: Any) -> RunConfig:
    return read_run_config(str(tiny_corpus.recipe), [])


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"processes": None, "layout": None, "precision": "fp32", "engines": None, **given})


def names(choices: list[Any]) -> list[str]:
    return [layout_text(choice.parallel) for choice in choices]


def test_each_layout_is_trained_on_each_engine_that_takes_it(config: RunConfig) -> None:
    args = arguments(layout=["data=2", "tensor=2"], engines="")
    choices, skipped = wanted_layouts(config, args, ENGINES)
    assert names(choices) == ["data=2", "data=2,engine=deepspeed", "tensor=2"]
    reasons = {each.layout: each.reason for each in skipped}
    assert set(reasons) == {"data=2,engine=megatron", "tensor=2,engine=deepspeed", "tensor=2,engine=megatron"}
    assert "it runs on cuda only" in reasons["data=2,engine=megatron"]
    assert "parallel.tensor = 2 is invalid with" in reasons["tensor=2,engine=deepspeed"]


def test_all_layouts_that_fit_are_chosen_for_each_engine(config: RunConfig) -> None:
    choices, skipped = wanted_layouts(config, arguments(processes=2, engines=""), ENGINES[:2])
    native = [choice for choice in choices if choice.parallel.engine == "native"]
    assert native == wanted_layouts(config, arguments(processes=2), [])[0]
    assert "engine=deepspeed" in names(choices), "one process of another engine is compared too"
    assert "data=2,engine=deepspeed,zero_stage=3" in names(choices)
    assert "tensor=2,engine=deepspeed" in [each.layout for each in skipped]


def test_the_recipes_own_layout_in_one_process_is_compared_on_other_engines_only(config: RunConfig) -> None:
    choices, _ = wanted_layouts(config, arguments(engines=""), ENGINES[:2])
    assert names(choices) == ["engine=deepspeed"]


def test_a_layout_that_no_engine_takes_is_an_error_with_each_reason(config: RunConfig) -> None:
    parallel = ParallelConfig(precision="fp32", tensor=2)
    with pytest.raises(ConfigError, match=r"no engine of --engines takes this layout: parallel\.tensor = 2 is invalid"):
        on_engines([("", parallel)], ENGINES[1:2], workload_of(config))


def test_engines_are_read_in_their_order() -> None:
    assert named_engines(None) == []
    assert named_engines(" native ") == ["native"]


def test_a_layout_of_an_engine_that_cannot_be_used_here_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "deepspeed-0.18.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"--layout data=2,engine=deepspeed: .* deepspeed 0\.18\.0 computed wrong"):
        wanted_layouts(config, arguments(layout=["data=2,engine=deepspeed"]), [])
