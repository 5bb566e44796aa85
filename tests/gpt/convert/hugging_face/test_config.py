"""Our configuration as config.json, and back; without transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.convert.hugging_face.config import config_json, model_config, read_settings
from gpt.errors import ConfigError
from gpt.model.config import RopeScaling


def write(folder: Path, settings: object) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"d_ff": 80}),
        ("gpt2", {"d_ff": 80, "tied": False, "norm_eps": 1e-6}),
        ("llama", {}),
        ("llama", {"rope_scaling": RopeScaling(8.0, original_n_ctx=64), "bias": True, "tied": True}),
    ],
)
def test_config_json_gives_the_same_configuration(
    tmp_path: Path, small_config: Any, family: str, settings: dict[str, Any]
) -> None:
    config = small_config(family, **settings)
    found = config_json(config, dtype=torch.bfloat16)
    assert found["dtype"] == "bfloat16"
    assert model_config(write(tmp_path, found)) == config


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("gpt2", {"model_type": "mamba"}, "model_type = 'mamba' .* is not supported. Use GPT-2"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ("gpt2", {"n_head": 0}, "n_head = 0 must be a whole number"),
        ("llama", {"head_dim": 24}, "head_dim = 24 is not supported; only hidden_size / num_attention_heads = 32 / 4"),
        ("llama", {"attention_bias": True}, "either all linear layers have a bias or none"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "the rope scaling lacks low_freq_factor"),
        ("llama", {"auto_map": {"AutoModel": "x"}}, "remote code, which is never run"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised weights"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, small_config: Any, family: str, change: dict[str, Any], words: str
) -> None:
    settings = {**config_json(small_config(family), dtype=torch.float32), **change}
    with pytest.raises(ConfigError, match=words):
        model_config(write(tmp_path, settings))


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a Hugging Face folder"):
        read_settings(tmp_path)
    for text, words in (("{", "is not JSON"), ("[]", "is not a JSON object"), ("[" * 100_000, "is not JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_settings(tmp_path)
