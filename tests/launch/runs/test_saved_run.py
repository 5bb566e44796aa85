"""Load a run directory: the newest or a given step, bit for bit. Damaged and wrong runs are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import train_sentencepiece
from gpt.training.config import Retention
from launch.runs.saved_run import CHOSEN, best_step, load_run, open_run
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.save import save_checkpoint


def test_the_newest_and_a_requested_step_are_loaded_bit_for_bit(made: Any) -> None:
    for asked, step in ((None, 20), (10, 10), (20, 20)):
        loaded = load_run(made.directory, step=asked)
        assert loaded.saved.step == step
        assert loaded.saved.checkpoint.path.name == f"step-{step:09d}"
        expected = dict(made.models[step].named_parameters())
        found = dict(loaded.model.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        tokens = torch.arange(40).unsqueeze(0)
        assert torch.equal(loaded.model(tokens), made.models[step](tokens))
    folder = made.directory / "checkpoints" / "step-000000010"
    loaded = load_run(folder)
    assert (loaded.saved.step, loaded.saved.tokens_seen) == (10, 40960)
    assert loaded.saved.tokenizer_file == made.directory.absolute() / "tokenizer" / "original.model"
    assert loaded.model.head is not None
    assert loaded.model.embed is not None
    assert loaded.model.head.weight is loaded.model.embed.tokens.weight


def test_bfloat16_is_the_rounded_model(made: Any) -> None:
    loaded = load_run(made.directory, dtype=torch.bfloat16)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, made.models[20].get_parameter(name).to(torch.bfloat16))


@pytest.fixture
def copy(made: Any, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return shutil.copytree(made.directory, tmp_path / "run")


def rewrite_step(run: Path, change: Any) -> None:
    """Save step 20 of a run again with its tensors and state changed."""
    path = run / "checkpoints" / "step-000000020"
    checkpoint = verify_checkpoint(path)
    tensors, state = dict(read_tensors(checkpoint)), checkpoint.state
    change(tensors, state)
    save_checkpoint(run / "checkpoints", step=20, tensors=tensors, state=state, keep=Retention(2))


def test_a_damaged_checkpoint_is_skipped_with_a_note(
    copy: Path, capsys: pytest.CaptureFixture[str], triaxial: Any
) -> None:
    shard = copy / "checkpoints" / "step-000000020" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert open_run(copy).step == 10
    triaxial("generate", copy, "--prompt", "The", "--max-new-tokens", 1)
    assert "skipped the checkpoint" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="damaged"):
        load_run(copy, step=20)


def test_runs_that_cannot_be_loaded_are_refused(copy: Path, made: Any, tmp_path: Path) -> None:
    def refused(path: Path, words: str, **settings: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            load_run(path, **settings)

    refused(tmp_path / "nowhere", "nowhere: no such folder. Give a run directory")
    refused(tmp_path, "neither a run directory")
    refused(copy, "--step 15: .* There are: 10, 20", step=15)
    refused(copy / "checkpoints" / "step-000000010", "is itself a checkpoint", step=10)
    rewrite_step(copy, lambda tensors, state: tensors.pop("model.blocks.1.mlp.up.bias"))
    refused(copy, r"'model.blocks.1.mlp.up.bias' is absent, but \[128\].*another model")
    rewrite_step(copy, lambda tensors, state: tensors.update({"model.blocks.1.mlp.up.bias": torch.zeros(7)}))
    refused(copy, r"is \[7\], but \[128\]")
    for key, value, words in (
        ("n_layers", 9999, r"n_layers = 9,999 is invalid: the files hold only .. tensors"),
        ("n_layers", 10**9, "model.n_layers = 1000000000 is invalid: must be at most"),
        ("n_layers", "many", "model.n_layers = 'many' is invalid: must be a whole number"),
        ("d_model", 10**9, "model.d_model = 1000000000 is invalid: must be at most"),
    ):  # each would fill the memory or overflow before shapes were compared
        rewrite_step(copy, lambda tensors, state: state["config"]["model"].update({key: value}))  # noqa: B023
        refused(copy, words)
        rewrite_step(copy, lambda tensors, state: state["config"]["model"].update(n_layers=2, d_model=32))
    rewrite_step(copy, lambda tensors, state: state["config"]["model"].update(n_layer=3))
    refused(copy, "model.n_layer: unknown key 'n_layer'; use model.n_layers")
    rewrite_step(copy, lambda tensors, state: state.pop("config"))
    refused(copy, "contains no configuration")
    shutil.rmtree(copy / "tokenizer")
    refused(copy, r"original.model: no such tokenizer file", step=10)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    refused(copy, "contains no whole checkpoint")


def test_a_tokenizer_larger_than_the_model_is_refused(copy: Path) -> None:
    words = [f"{a}{b}{c}" for a in "aeiou" for b in "bcdfg" for c in "klmnp"]
    train_sentencepiece(iter([" ".join(words)] * 2), copy / "tokenizer" / "original.model", vocab_size=370)
    with pytest.raises(ConfigError, match=r"has 370 pieces, but the model .* only model.vocab_size = 360"):
        open_run(copy)


@pytest.mark.parametrize("text", ["{}", '{"step": "4"}', '{"step": true}'])
def test_a_choice_without_a_step_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CHOSEN).write_text(text)
    with pytest.raises(ConfigError, match=r"chosen\.json is damaged: step "):
        best_step(tmp_path, None)
