"""run.start_from: a new run takes another run's weights, and nothing else."""

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from gpt.errors import ConfigError
from gpt.losses.base import Loss, LossTotals
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.heads import ScalarHead
from gpt.training.objective import NextToken, Objective
from launch.config.run_config import read_run_config
from launch.main import main
from launch.processes.environment import ClusterEnvironment
from launch.runs.imported_run import HUGGING_FACE, model_toml
from launch.runs.saved_run import load_run
from launch.training.start_from import check_start_from
from launch.training.train_rank import run_rank
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.load import read_tensors

QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
STILL = ["--optimizer.learning_rate", "1e-30"]  # so that weights do not change, bit for bit


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *QUIET, *map(str, words)])


@pytest.fixture(scope="module")
def first(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    assert train(tiny_corpus, run, "--train.total_tokens", 1024, "--run.seed", 9) == 0
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_run(run).model.named_parameters())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_new_run_takes_the_weights_and_nothing_else(
    tiny_corpus: Any, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first / HUGGING_FACE).mkdir()
    (first / HUGGING_FACE / "chat_template.jinja").write_text("{{ messages }}")
    words = [*STILL, "--run.start_from", first]
    assert train(tiny_corpus, tmp_path / "run", *words, "--train.total_tokens", 512) == 0
    assert "weights of" in capsys.readouterr().out
    assert equal(weights(tmp_path / "run"), weights(first))
    saved = load_run(tmp_path / "run").saved
    assert (saved.step, saved.tokens_seen) == (1, 512)
    assert saved.checkpoint.state["optimizer_steps"] == 1
    assert (tmp_path / "run" / HUGGING_FACE / "chat_template.jinja").read_text() == "{{ messages }}"
    fresh = tmp_path / "fresh"
    assert train(tiny_corpus, fresh, *STILL, "--train.total_tokens", 512) == 0
    assert not equal(weights(fresh), weights(first)), "the seed's weights are others"

    gone = tmp_path / "gone"
    first.rename(gone)
    try:
        assert train(tiny_corpus, tmp_path / "run", *words, "--train.total_tokens", 1024) == 0, (
            "a resume needs it no more"
        )
    finally:
        gone.rename(first)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert kinds.count("started_from") == 1
    assert kinds.count("resumed") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.start_from", "/nowhere"], "/nowhere: no such folder"),
        (["--model.n_layers", "3"], "is of another model than the recipe's (model.n_layers: 2 -> 3)"),
        (["--model.rope_scaling.factor", "2", "--model.positions", '"rope"'], "model.positions: learned -> rope"),
    ],
)
def test_errors_are_one_line(
    tiny_corpus: Any,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert train(tiny_corpus, tmp_path / "run", "--run.start_from", first, *words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_recipe_with_fewer_layers_takes_the_first_ones(
    tiny_corpus: Any, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*STILL, "--run.start_from", first, "--model.n_layers", 1, "--train.total_tokens", 512]
    assert train(tiny_corpus, tmp_path / "run", *words) == 0
    assert "its last 1 are left out" in capsys.readouterr().out
    kept = {name: w for name, w in weights(first).items() if not name.startswith("blocks.1.")}
    assert equal(weights(tmp_path / "run"), kept)


def test_settings_that_are_equal_in_fp32_are_of_one_model(tiny_corpus: Any, first: Path) -> None:
    """Converters write fp32 numbers in decimals."""
    words = ["--run.start_from", str(first), "--run.directory", "unused", "--model.norm_eps"]
    check_start_from(read_run_config(str(tiny_corpus.recipe), [*words, "9.999999747378752e-06"]))
    with pytest.raises(ConfigError, match="is of another model"):
        check_start_from(read_run_config(str(tiny_corpus.recipe), [*words, "9.9e-06"]))


@pytest.mark.rehearse
def test_every_layout_starts_from_the_same_weights(tiny_corpus: Any, first: Path, tmp_path: Path) -> None:
    one = first / "checkpoints" / "step-000000002"
    words = [*STILL, "--run.start_from", one, "--train.total_tokens", 512, "--nproc", 4]
    for name, layout in (("tp_pp", (2, 2)), ("dp", (1, 1)), ("pp", (1, 2))):
        tensor, pipeline = layout
        layout_words = ["--parallel.tensor", tensor, "--parallel.pipeline", pipeline, "--batch.micro_batch_size", 1]
        assert train(tiny_corpus, tmp_path / name, *words, *layout_words) == 0
        assert equal(weights(tmp_path / name), weights(first)), name


class SquaredLoss:
    metric_names = evaluation_names = ()

    def __call__(self, outputs: Tensor, batch: Batch) -> LossTotals:
        total = outputs.float().square().sum()
        count = torch.tensor(outputs.numel(), device=outputs.device)
        return LossTotals(total, count, total.detach(), {})


@dataclass(frozen=True)
class Scalar(NextToken):
    """One number per position instead of a token."""

    def head(self, config: ModelConfig) -> nn.Module:
        return ScalarHead(config)

    def loss(self, *, compile: bool) -> Loss:
        return SquaredLoss()


@dataclass(frozen=True)
class ScalarConfig:
    kind: Literal["scalar"] = "scalar"

    def build(self, *, z_loss: float) -> Objective:
        return Scalar()


def tensors(run: Path) -> dict[str, Tensor]:
    checkpoint, _ = find_latest(run / "checkpoints")
    assert checkpoint is not None
    return {name: tensor for name, tensor in read_tensors(checkpoint) if name.startswith("model.")}


def train_scalar(tiny_corpus: Any, run: Path, *words: object) -> int:
    words = ("--run.directory", run, *QUIET, *STILL, "--train.total_tokens", 512, *words)
    config = read_run_config(str(tiny_corpus.recipe), [*map(str, words)])
    return run_rank(replace(config, objective=ScalarConfig()), ClusterEnvironment(), resume=None)


def test_a_new_head_is_initialised_from_the_seed(
    tiny_corpus: Any, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_scalar(tiny_corpus, run, "--run.start_from", first) == 0
    out = capsys.readouterr().out
    assert "head.value.weight is initialised from the seed: " in out
    assert "embed.tokens.weight is" not in out
    assert train_scalar(tiny_corpus, tmp_path / "fresh") == 0
    old, new, fresh = tensors(first), tensors(run), tensors(tmp_path / "fresh")
    head = {name for name in new if name.startswith("model.head.")}
    assert new.keys() - head == old.keys(), "the tied model has no head of its own"
    for names, expected in ((old.keys(), old), (head, fresh)):
        for name in names:  # the one step moves a bias of 0 to 1e-30
            assert torch.allclose(new[name], expected[name], rtol=0, atol=1e-29), name
    assert new["model.head.value.weight"].any()

    assert train_scalar(tiny_corpus, tmp_path / "again", "--run.start_from", run) == 0
    assert "initialised from the seed" not in capsys.readouterr().out, "this run has the head"


def test_model_toml_is_the_model_section_of_a_recipe(tiny_corpus: Any, tmp_path: Path) -> None:
    for words in ([], ["--model.positions", '"rope"', "--model.rope_scaling.factor", "8", "--model.norm_eps", "1e-6"]):
        config = read_run_config(str(tiny_corpus.recipe), words)
        text = tiny_corpus.recipe.read_text()
        start, stop = text.index("[model]"), text.index("[data]")
        (tmp_path / "recipe.toml").write_text(text[:start] + model_toml(config.model) + text[stop:])
        again = read_run_config(str(tmp_path / "recipe.toml"), [])
        assert dataclasses.asdict(again.model) == dataclasses.asdict(config.model)
