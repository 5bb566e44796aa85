"""A checkpoint to plain safetensors and back: the run resumes bit for bit, and hostile folders are refused."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.errors import ConfigError
from launch.conversion.plain import export_plain, import_plain
from launch.main import main
from launch.runs.saved_run import load_run, open_run
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    quiet = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--train.validation_tokens", "64"]
    return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *quiet, *map(str, words)])


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def tensors_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(read_tensors(verify_checkpoint(run / "checkpoints" / f"step-{step:09d}")))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], tensor) for name, tensor in right.items())


@pytest.fixture(scope="module")
def run(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps of 12."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    assert train(tiny_corpus, directory, "--train.total_tokens", 4096) == 0
    return directory


@pytest.fixture(scope="module")
def plain(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its newest checkpoint as plain safetensors, in several files."""
    folder = tmp_path_factory.mktemp("files") / "plain"
    export_plain(open_run(run), folder, max_file_bytes=100_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 4
    return folder


def test_a_run_resumes_from_plain_files_bit_for_bit(
    tiny_corpus: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(run, "--to", "safetensors", "--output", tmp_path / "plain") == 0
    assert "in 1 safetensors files" in capsys.readouterr().out
    assert equal(load_file(tmp_path / "plain" / "model.safetensors"), tensors_of(run, 8))
    assert convert(tmp_path / "plain", "--to", "triaxial", "--output", tmp_path / "back") == 0
    out = capsys.readouterr().out
    assert "step 8" in out
    assert "have changed since" not in out
    assert equal(tensors_of(tmp_path / "back", 8), tensors_of(run, 8))
    assert convert(tmp_path / "plain", "--to", "triaxial", "--dry-run") == 0
    assert "parameters" in capsys.readouterr().out
    for words, said in (
        ("--to hf", "First"),
        ("--to triaxial --step 8", "a single checkpoint"),
        ("--to triaxial --dtype float16", "hf"),
    ):
        assert convert(tmp_path / "plain", *words.split(), "--output", tmp_path / "other") == 2
        assert said in capsys.readouterr().err
    whole = shutil.copytree(run, tmp_path / "whole")
    for directory in (whole, tmp_path / "back"):
        assert train(tiny_corpus, directory) == 0
        assert "resumed from" in capsys.readouterr().out
    assert equal(tensors_of(tmp_path / "back", 12), tensors_of(whole, 12))


def test_changed_weights_are_imported_and_reported(run: Path, plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "plain")
    name = "model.blocks.1.mlp.up.bias"
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file)
    lines = import_plain(folder, tmp_path / "back")
    assert f"1 tensors have changed since the export, '{name}' is the first" in lines
    before, after = tensors_of(run, 8), tensors_of(tmp_path / "back", 8)
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]
    assert before.keys() == after.keys()


def test_weights_without_moments_start_a_new_run(tiny_corpus: Any, run: Path, tmp_path: Path) -> None:
    assert convert(run, "--to", "safetensors", "--output", tmp_path / "plain", "--weights-only") == 0
    assert all(name.startswith("model.") for name in load_file(tmp_path / "plain" / "model.safetensors"))
    assert any("weights only" in line for line in import_plain(tmp_path / "plain", tmp_path / "back"))
    expected, found = (dict(load_run(path).model.named_parameters()) for path in (run, tmp_path / "back"))
    assert equal(found, expected)
    words = ["--run.start_from", tmp_path / "back", "--train.total_tokens", 512]
    assert train(tiny_corpus, tmp_path / "new", *words) == 0
    begun = dict(load_run(tmp_path / "new").model.named_parameters())
    assert begun.keys() == expected.keys()
    assert all((begun[name] - tensor).abs().max() < 0.05 for name, tensor in expected.items()), "one step later"


def test_a_wrong_folder_is_an_error_of_one_line_and_nothing_is_written(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "plain")

    def refused(words: str) -> None:
        with pytest.raises(ConfigError, match=words) as caught:
            import_plain(folder, tmp_path / "back")
        assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == ["plain"]
        shutil.rmtree(folder)
        shutil.copytree(plain, folder)

    def change(change_tensors: Any) -> None:
        file = sorted(folder.glob("model-*.safetensors"))[0]
        tensors = load_file(file)
        change_tensors(tensors)
        save_file(tensors, file)

    def rewrite(file: str, **values: object) -> None:
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))

    change(lambda tensors: tensors.pop(min(tensors)))
    refused("lists 'model.blocks.0")
    change(lambda tensors: tensors.update({min(tensors): torch.zeros(3)}))
    refused(r"'model\.blocks\.0\S+' is \[3\], but")
    change(lambda tensors: tensors.update({"model.../../x": torch.zeros(3)}))
    refused(r"'model\.\.\./\.\./x' is \[3\], but absent")
    change(lambda tensors: tensors.update({"/etc/passwd": torch.zeros(3)}))
    refused("neither a weight nor part of the optimizer")
    rewrite("model.safetensors.index.json", weight_map={"x": "../plain/x.safetensors"})
    refused("not a safetensors file in the same folder")
    model = json.loads((folder / "config.json").read_text())["model"]
    rewrite("config.json", model={**model, "n_layers": 3})
    refused("describe different models")
    rewrite("config.json", model={**model, "n_layer": 3})
    refused("unknown key 'n_layer'")
    (folder / "tokenizer" / "passwd").symlink_to("/etc/passwd")
    refused("symbolic link")
    rewrite("state.json", step="../..")
    refused(r"state\.json is invalid: step = '\.\./\.\.' is no whole number")
    (folder / "state.json").write_bytes(b"[" * 100_000)
    refused(r"state\.json is not JSON")


def test_pickles_and_header_bombs_are_never_opened(plain: Path, tmp_path: Path) -> None:
    folder, canary = tmp_path / "plain", tmp_path / "canary"

    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(canary),)

    bomb = pickle.dumps(Canary()) + bytes(1000)
    pickle.loads(bomb)
    assert canary.is_dir(), "loading the pickle must make the canary"
    canary.rmdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40, 5], "data_offsets": [0, 5 << 42]}}).encode()
    for data in (
        bomb,
        (1 << 62).to_bytes(8, "little") + bytes(100),
        len(header).to_bytes(8, "little") + header,
    ):
        for file in sorted(os.listdir(plain)):
            if file == "tokenizer":
                continue
            shutil.copytree(plain, folder, dirs_exist_ok=True)
            (folder / file).write_bytes(data)
            with pytest.raises(ConfigError):
                import_plain(folder, tmp_path / "back")
            assert os.listdir(tmp_path) == ["plain"], file
    assert not canary.exists()
