"""PPO and GRPO with [adapter]: only the adapters train, and the reference is the model without them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.adapters.config import BASE, is_adapter
from gpt.errors import ConfigError
from launch.config.run_config import read_run_config
from launch.main import main
from launch.post_training.checks import check_unused
from launch.runs.saved_run import load_run
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import read_tensors

ADAPTER = ["--adapter.rank", "4", "--adapter.alpha", "16", "--objective.ema", "0", "--optimizer.learning_rate", "1e-2"]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint, _ = find_latest(run / "checkpoints")
    assert checkpoint is not None
    return dict(read_tensors(checkpoint))


@pytest.fixture(scope="module")
def runs(instruct: Any, ppo_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations of each kind: at once, and with a resumed second one from checkpoints of adapters alone."""
    folder, several = tmp_path_factory.mktemp("adapter"), []
    for kind, recipe in ("ppo", instruct.recipe), ("grpo", instruct.group_recipe):
        alone = ["--adapter.save_base", "false"]
        for name, steps, more in ("whole", 2, []), ("parts", 1, alone), ("parts", 2, alone):
            words = [str(recipe), "--run.directory", str(folder / kind / name), "--train.total_steps", str(steps)]
            several.append([*words, *ADAPTER, *more])
    failed = ppo_program.launch(folder, {"name": "one", "nproc": 1, "words": several, "path": str(instruct.folder)})
    assert not failed, failed
    return folder


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_base_stays_and_the_policy_moves(instruct: Any, runs: Path, kind: str) -> None:
    base, found = tensors_of(instruct.folder / "base"), tensors_of(runs / kind / "whole")
    for name, tensor in found.items():
        if name.startswith("model.") and not is_adapter(name):
            assert torch.equal(tensor, base[name]), name
    assert all(tensor.any() for name, tensor in found.items() if name.endswith("adapter.b"))
    lines = [json.loads(line) for line in (runs / kind / "whole" / "metrics.jsonl").read_text().splitlines()]
    first, second = [line for line in lines if f"{kind}/kl" in line]
    assert first[f"{kind}/kl"] == 0.0, "without B the policy is the reference"
    assert second[f"{kind}/kl"] != 0.0
    for line in first, second:
        assert line[f"{kind}/first_ratio_error"] == 0.0
        assert line[f"{kind}/sampler_gap_max"] < 1e-5, "responses are of the policy with its adapters"


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_checkpoints_of_adapters_alone_resume_with_the_same_bits(runs: Path, kind: str) -> None:
    whole, parts = tensors_of(runs / kind / "whole"), tensors_of(runs / kind / "parts")
    trained = {name for name in whole if is_adapter(name)}
    assert parts.keys() == trained
    for name in trained:
        assert torch.equal(whole[name], parts[name]), name
    if kind == "ppo":
        value, _ = find_latest(runs / kind / "parts" / "value" / "checkpoints")
        assert value is not None
        assert BASE not in value.state, "it is a whole model"
    policy, same = (dict(load_run(runs / kind / name).model.named_parameters()) for name in ("whole", "parts"))
    for name, parameter in policy.items():
        assert torch.equal(parameter, same[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_policy_starts_from_the_merged_model_of_a_run_with_adapters(
    instruct: Any, tiny_corpus: Any, ppo_program: Any, tmp_path: Path, precision: str
) -> None:
    """Its own base is the first run's model with that run's adapters merged, rounded once; so is the reference."""
    tuned, run = tmp_path / "tuned", tmp_path / "ppo"
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(tuned), "--run.start_from"]
    words += [str(instruct.folder / "base"), "--train.total_tokens", "1024", "--data.validation", "[]"]
    words += ["--metrics.wandb", "disabled", "--adapter.rank", "4", "--adapter.save_base", "false"]
    assert main([*words, "--optimizer.learning_rate", "1e-2"]) == 0
    policy = [str(instruct.recipe), "--run.directory", str(run), "--run.start_from", str(tuned)]
    words = [*policy, "--train.total_steps", "1", *ADAPTER, "--parallel.precision", precision]
    failed = ppo_program.launch(tmp_path, {"name": "one", "nproc": 1, "words": [words], "path": str(instruct.folder)})
    assert not failed, failed
    merged, before = dict(load_run(tuned).model.named_parameters()), tensors_of(instruct.folder / "base")
    found = {name.removeprefix("model."): tensor for name, tensor in tensors_of(run).items() if not is_adapter(name)}
    changed = 0
    for name, parameter in merged.items():
        assert torch.equal(found[name], parameter.to(found[name].dtype)), name
        changed += not torch.equal(parameter, before[f"model.{name}"])
    assert changed == 12, "the adapters of the first run moved all projections of both layers"
    (line,) = [json.loads(one) for one in (run / "metrics.jsonl").read_text().splitlines() if "ppo/kl" in one]
    assert line["ppo/kl"] == 0.0


def test_an_average_of_adapters_is_refused(instruct: Any) -> None:
    config = read_run_config(str(instruct.recipe), ["--adapter.rank", "4"])
    with pytest.raises(
        ConfigError, match=r"objective.ema = 0.992 is invalid with \[adapter\]: .* Use objective.ema = 0"
    ):
        check_unused(config)
