"""A task's `generation_kwargs` mean what they mean in lm-evaluation-harness."""

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.answer_settings import read_settings
from gpt.inference.sampling_settings import GREEDY, Sampling


def test_settings_of_a_task_are_read_as_the_harness_reads_them() -> None:
    settings = read_settings(
        {"until": "\n", "max_new_tokens": 7, "do_sample": False, "temperature": 0.8}, default_tokens=256
    )
    assert (settings.until, settings.new_tokens, settings.sampling) == (("\n",), 7, GREEDY)
    settings = read_settings({"until": ["a", ""], "temperature": 0.5, "top_p": 0.9, "top_k": 0}, default_tokens=256)
    assert (settings.until, settings.new_tokens) == (("a",), 256)
    assert settings.sampling == Sampling(0.5, None, 0.9)
    assert read_settings({"do_sample": True, "top_k": 5, "num_beams": 1}, default_tokens=9).sampling == Sampling(1.0, 5)
    assert read_settings({"repetition_penalty": 1.5}, default_tokens=9).sampling == Sampling(repetition_penalty=1.5)
    assert read_settings({"max_tokens": 5, "max_gen_toks": 6}, default_tokens=9).new_tokens == 6
    with pytest.raises(ConfigError, match="num_beams = 4"):
        read_settings({"num_beams": 4}, default_tokens=9)
