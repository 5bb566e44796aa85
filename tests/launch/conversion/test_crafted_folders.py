"""A wrong or crafted Hugging Face folder gives an error of one line and leaves nothing."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import LLAMA_3, convert
from safetensors.torch import load_file, save_file


def _change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _change_tensors(folder: Path, change: Any) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _larger_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"]["zz"] = 600
    path.write_text(json.dumps(table))


def _header(folder: Path, change: Any) -> None:
    """Change the header of the weights, and nothing else."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _overlap(header: dict[str, Any]) -> None:
    """Two tensors of one shape share their bytes."""
    a, b = ("model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight")
    header[a]["data_offsets"] = header[b]["data_offsets"]


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _spoil(folder: Path, name: str, value: float) -> None:
    _change_tensors(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


# Files that nobody writes by accident: each gave a traceback, no answer, or a line of megabytes.
CRAFTED: list[tuple[Any, str]] = [
    (lambda f: _change_config(f, vocab_size=2**61), "vocab_size = 2305843009213693952 must be a whole number from 1"),
    (lambda f: _change_config(f, num_hidden_layers=10**6), "num_hidden_layers = 1000000 must be a whole number from 1"),
    (lambda f: _change_config(f, num_hidden_layers=9999), "the files hold only .. tensors, and each layer has several"),
    (lambda f: _change_config(f, rope_theta="x" * 10**6), "rope_theta = 'xxx.* must be a finite number"),
    (lambda f: _change_config(f, rms_norm_eps=[1]), r"rms_norm_eps = \[1\] must be a finite number"),
    (lambda f: _change_config(f, rms_norm_eps=10**400), "rms_norm_eps = 1000.* must be a finite number"),
    (lambda f: _change_config(f, rope_scaling="llama3"), "rope_scaling = 'llama3' must be an object"),
    (lambda f: _change_config(f, rope_scaling={"rope_type": [], "factor": 8}), r"rope_type = \[\] is not supported"),
    (lambda f: _change_config(f, rope_scaling={**LLAMA_3, "factor": None}), "the rope scaling lacks factor"),
    (lambda f: _change_config(f, rope_scaling={**LLAMA_3, "low_freq_factor": {}}), "low_freq_factor = {} must be"),
    (
        lambda f: _change_config(f, model_type=["llama"], architectures=7),
        "model_type = ..llama.. ..no architecture",
    ),
    (lambda f: _change_config(f, tie_word_embeddings="false"), "tie_word_embeddings = 'false' must be true or false"),
    (lambda f: _change_config(f, hidden_size="\x1b[2J\n"), r"hidden_size = '\\x1b\[2J\\n' must be"),
    (lambda f: (f / "config.json").write_text("[" * 10**5 + "]" * 10**5), "nested too deeply"),
    (lambda f: _pipe(f / "config.json"), r"config\.json is a named pipe"),
    (lambda f: _pipe(f / "model.safetensors"), r"model\.safetensors is a named pipe"),
    (lambda f: (f / "tokenizer_config.json").write_text("[]"), "transformers cannot load|is not the tokenizer"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "b": null}}'), "no weight_map"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 5}'), "has no weight_map"),
    (lambda f: _header(f, _overlap), "overlaps the tensor before it, or leaves a gap"),
    (lambda f: _header(f, lambda h: {"\x1b" * 10**6: h.popitem()[1]}), r"\\x1b.*leaves a gap"),
    (lambda f: _header(f, lambda h: [h]), "is not a safetensors file"),
    (lambda f: _header(f, lambda h: {"x" * 10**7: {"y" * 10**7: 1}}), "is not a safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\0\0\0\5\0\0\0\0" + b"[" * 100), "do not hold its header"),
    (lambda f: _spoil(f, "model.norm.weight", math.nan), "'model.norm.weight' contains NaN or infinity"),
    (lambda f: _spoil(f, "model.layers.2.mlp.up_proj.weight", -math.inf), "contains NaN or infinity"),
    (lambda f: _spoil(f, "model.layers.0.mlp.up_proj.weight", 3e38), "logits are NaN or infinite"),
]
BAD: list[tuple[Any, str]] = [
    *CRAFTED,
    (lambda f: _change_config(f, model_type="mamba", architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
    (lambda f: _change_config(f, auto_map={"AutoModel": "evil.Model"}), "remote code, which is never run"),
    (lambda f: _change_config(f, quantization_config={"bits": 4}), "quantised weights"),
    (lambda f: _change_config(f, hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    (lambda f: _change_config(f, head_dim=24), "head_dim = 24"),
    (lambda f: _change_config(f, attention_bias=True), "either all linear layers have a bias or none"),
    (lambda f: _change_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "'yarn'"),
    (lambda f: _change_config(f, num_hidden_layers=4), "9 tensors of the Llama that config.json describes are missing"),
    (lambda f: _change_config(f, num_hidden_layers=2), "9 tensors are unknown to the Llama"),
    (lambda f: _change_config(f, vocab_size=514), r"is \[515, 48\], but \[514, 48\] in the Llama"),
    (lambda f: _change_tensors(f, lambda t: t.pop("model.norm.weight")), "'model.norm.weight' is the first"),
    (lambda f: _change_tensors(f, lambda t: t.update(x=torch.ones(2))), "1 tensors are unknown .* 'x' is the first"),
    (lambda f: _cut(f), "cut off"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x05\0"), "not a complete safetensors file"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "a pickle, which can run code"),
    (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    (lambda f: _larger_tokenizer(f), "601 pieces, but .* a vocabulary of 515: it is another model's tokenizer"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD)
def test_a_wrong_folder_is_an_error_of_one_line_and_nothing_is_written(
    tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words: str
) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    spoil(folder)
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert len(error) < 25_000
    assert "\x1b" not in error
    assert re.search(words, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_head_of_zeros_is_converted(tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    _change_tensors(folder, lambda tensors: tensors["lm_head.weight"].zero_())
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run") == 0
    assert "within 0.0e+00 of transformers" in capsys.readouterr().out


def test_numbers_that_a_dtype_does_not_hold_are_not_exported_as_infinity(
    tmp_path: Path, good_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(good_folder, tmp_path / "folder")
    _spoil(folder, "model.norm.weight", 1e5)
    words = ("--logits", "none")
    assert convert(folder, "--to", "triaxial", "--output", tmp_path / "run", *words) == 0
    assert convert(tmp_path / "run", "--to", "hf", "--output", tmp_path / "half", "--dtype", "float16", *words) == 2
    assert "'norm.weight' has numbers too large for float16. Use --dtype float32." in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_another_models_tokenizer_is_refused(
    tmp_path: Path, good_folder: Path, tokenizer_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads(tokenizer_json.read_text())
    table["model"]["merges"] = table["model"]["merges"][:20]  # the same vocabulary, but other ids for a text
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(table))
    words = ("--to", "triaxial", "--output", tmp_path / "run", "--tokenizer", other)
    assert convert(good_folder, *words) == 2
    assert "is not the tokenizer that transformers finds in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
