"""Write a run directory with weights from elsewhere, and open it as any run."""

import tomllib
from pathlib import Path

import pytest
import torch

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import train_sentencepiece
from launch.config.recipe import build
from launch.runs.imported_run import IMPORTED, expected_weights, model_toml, read_weights, write_run
from launch.runs.saved_run import load_run

CONFIG = ModelConfig(vocab_size=300, n_ctx=16, n_layers=1, d_model=16, n_heads=2)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    train_sentencepiece(iter([" ".join(words)] * 2), tmp_path / "t.model", vocab_size=290)
    return tmp_path / "t.model"


def test_imported_weights_are_opened_as_a_run_at_step_0(tmp_path: Path, tokenizer: Path) -> None:
    model = GPT(CONFIG)
    weights = dict(model.named_parameters())
    folder = tmp_path / "run"
    folder.mkdir()
    order = sorted(weights)
    stream = ((name, weights[name].detach()) for name in order)
    path = write_run(folder, stream, config=CONFIG, tokenizer_file=tokenizer, about={"from": "x"}, order=order)
    assert path == folder / "checkpoints" / "step-000000000"
    loaded = load_run(folder)
    assert (loaded.saved.step, loaded.saved.checkpoint.state[IMPORTED]) == (0, {"from": "x"})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.named_parameters())
    read = dict(read_weights(loaded.saved.checkpoint, order[:2]))
    assert list(read) == order[:2]
    assert [name.removeprefix("model.") for name in expected_weights(CONFIG, order)] == order


def test_model_toml_describes_the_model(tmp_path: Path) -> None:
    table = tomllib.loads(model_toml(CONFIG))
    assert build(ModelConfig, table["model"], where="model") == CONFIG
