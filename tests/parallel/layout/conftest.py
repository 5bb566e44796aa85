"""What the tests of this room share: a layout of GPT-3 125M, with every argument optional."""

import pytest

from gpt.model.config import ModelConfig
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)


@pytest.fixture(scope="session")
def resolve():
    """Return a function that resolves a layout; keys of [parallel] are keyword arguments."""

    def call(world_size=8, micro=4, tokens=524_288, seq_len=2048, model=MODEL, **parallel):
        config = ParallelConfig(**parallel)
        return resolve_layout(config, BatchConfig(micro, tokens), model=model, seq_len=seq_len, world_size=world_size)

    return call
