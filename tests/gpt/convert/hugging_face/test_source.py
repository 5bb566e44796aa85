"""A Hugging Face folder as a source of tensors, written by our own writer; without transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.convert.hugging_face.export import write_configs
from gpt.convert.hugging_face.names import table, to_hugging_face
from gpt.convert.hugging_face.source import find_tokenizer, open_source
from gpt.convert.round_trip import main_dtype
from gpt.convert.weights import shapes
from gpt.errors import ConfigError
from gpt.files.safetensors import write_model


def write(folder: Path, config: Any, model: Any, dtype: torch.dtype = torch.float32) -> Path:
    write_configs(folder, config, end_of_document_id=0, dtype=dtype)
    hf_shapes = {entry.hf_name: entry.shape(shapes(config)) for entry in table(config)}
    write_model(folder, to_hugging_face(config, model.named_parameters()), shapes=hf_shapes, dtype=dtype)
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_come_back_in_any_selection(tmp_path: Path, small_config: Any, random_model: Any, family: str) -> None:
    config = small_config(family)
    model = random_model(config)
    source = open_source(write(tmp_path, config, model, torch.float16))
    assert source.config.n_layers == config.n_layers
    assert main_dtype(source) == torch.float16
    assert [name for name, _ in source.read()] == [entry.hf_name for entry in table(config)] == list(source.specs)
    weights = dict(model.named_parameters())
    wanted = ["blocks.1.attention.k.weight", "embed.tokens.weight"]
    assert sorted(name for name, _ in source.read_weights(wanted)) == wanted
    for name, weight in source.read_weights(weights):
        assert torch.equal(weight, weights[name][: len(weight)].half()), name


def test_leftovers_of_older_files_are_passed_over_and_a_tied_head_is_compared(
    tmp_path: Path, small_config: Any, random_model: Any
) -> None:
    config = small_config("gpt2")
    path = write(tmp_path, config, random_model(config)) / "model.safetensors"
    older = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    older |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    older["lm_head.weight"] = older["wte.weight"].clone()
    save_file(older, path)
    assert len(open_source(tmp_path).tensors) == len(table(config))
    older["lm_head.weight"][0, 0] += 1
    save_file(older, path)
    with pytest.raises(ConfigError, match="differs from the embedding"):
        open_source(tmp_path)


def test_wrong_tensors_are_refused(tmp_path: Path, small_config: Any, random_model: Any) -> None:
    config = small_config("llama")
    path = write(tmp_path, config, random_model(config)) / "model.safetensors"
    good, name = load_file(path), "model.norm.weight"
    for change, words in (
        ({name: None}, f"1 tensors of the Llama .* are missing, '{name}' is the first"),
        ({"x": torch.ones(2)}, "1 tensors are unknown to the Llama .*, 'x' is the first"),
        ({name: torch.ones(3)}, rf"'{name}' is \[3\], but \[32\] in the Llama"),
        ({name: torch.ones(32, dtype=torch.float64)}, "float64. Only float32, float16 and bfloat16 are read"),
    ):
        save_file({key: tensor for key, tensor in {**good, **change}.items() if tensor is not None}, path)
        with pytest.raises(ConfigError, match=words):
            open_source(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        open_source(tmp_path / "gone")


def test_the_tokenizer_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").touch()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        find_tokenizer(tmp_path)
    for name in ("merges.txt", "tokenizer.model", "tokenizer.json"):
        (tmp_path / name).touch()
        assert find_tokenizer(tmp_path) == tmp_path / name
