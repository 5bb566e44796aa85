"""Small models of both Hugging Face families, and a tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import train_sentencepiece

VOCABULARY = 512
TEXT = """def walk(tree):
    for node in tree.children:
        if node is not None and len(node.name) > 3:
            yield from walk(node)    # and the rest of them, in order
    return [walk(child) for child in tree]

The parser reads the source of the module, then the interpreter runs it; otherwise an error is raised. Größe, Straße,
façade, naïve: words with letters that are rare here. In 1989 and 2024 there were 3.14 and 42 of these and those.
"""


SIZES = {"vocab_size": VOCABULARY, "n_ctx": 32, "n_layers": 2, "d_model": 32, "n_heads": 4, "init_std": 0.2}
LLAMA = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False, "d_ff": 48}


@pytest.fixture(scope="session")
def small_config() -> Callable[..., ModelConfig]:
    """Return a function from the family, gpt2 or llama, and changed settings to a configuration."""

    def make(family: str, **settings: Any) -> ModelConfig:
        usual = {**LLAMA, "n_kv_heads": 2, "rope_theta": 50_000.0} if family == "llama" else {}
        return ModelConfig(**{**SIZES, **usual, **settings})

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[[ModelConfig], GPT]:
    """Return a function that makes a model with random biases and norms, which show a mix-up."""

    def make(config: ModelConfig) -> GPT:
        model = GPT(config).requires_grad_(False)
        initialise(model, config, seed=3)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def training_text() -> str:
    """The text that the tokenizer was trained on."""
    return TEXT


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece tokenizer of 512 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(iter([TEXT] * 3), path, vocab_size=VOCABULARY)
    return path
