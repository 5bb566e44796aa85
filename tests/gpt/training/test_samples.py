"""The sampler: which settings make one, and the prompts that it refuses.

tests/launch/training/test_train_ends.py samples in a run.
"""

import pytest

from gpt.errors import ConfigError
from gpt.inference.sampling_settings import Sampling
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.samples import make_sampler, sample_records


def test_no_setting_makes_no_sampler(tokenizer: Tokenizer) -> None:
    assert make_sampler(TrainConfig(total_tokens=100), tokenizer, n_ctx=8) is None


def test_prompts_must_leave_room_for_the_new_tokens(tokenizer: Tokenizer) -> None:
    """An empty prompt counts as one token, since it starts with the end of a document."""
    prompt = "Q: What is 12 plus 34?"
    length = len(tokenizer.encode(prompt))
    config = TrainConfig(
        total_tokens=100,
        sample_every_tokens=10,
        sample_prompts=("", prompt),
        sample_new_tokens=10,
        sample_temperature=0.5,
    )
    sampler = make_sampler(config, tokenizer, n_ctx=length + 10)
    assert sampler is not None
    assert (sampler.prompts, sampler.new_tokens, sampler.sampling) == (("", prompt), 10, Sampling(0.5))
    message = f"_new_tokens = 10 is invalid: with the {length} tokens .* model.n_ctx = {length + 9}. Use at most 9"
    with pytest.raises(ConfigError, match=message):
        make_sampler(config, tokenizer, n_ctx=length + 9)


def test_records_pair_each_prompt_with_its_text() -> None:
    assert sample_records(step=7, prompts=["a", "b"], texts=["a1", "b2"]) == [
        {"step": 7, "prompt": "a", "text": "a1"},
        {"step": 7, "prompt": "b", "text": "b2"},
    ]
