"""Answers to conversations are those that generation gives after the prompt in the run's chat format."""

import pytest

from data_prep.conversations.conversation import Turn
from gpt.errors import ConfigError
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from launch.generation.chat import ChatPrompt, ChatSettings, answer_chats
from launch.library.language_model import LanguageModel
from launch.runs.chat_format import chat_encoder
from launch.runs.saved_run import load_run

GREEDY = ChatSettings(Sampling(0.0), max_new_tokens=12)


@pytest.fixture(scope="module")
def loaded(made):
    return load_run(made.directory)


def answers(loaded, prompts, settings, seeds=None):
    with chat_encoder(loaded.saved) as encoder:
        return answer_chats(
            LocalModel(loaded.model), loaded.saved, encoder, prompts, settings, seeds=seeds or [0] * len(prompts)
        )


def test_the_answer_is_the_continuation_of_the_prompt(loaded):
    user, second = (
        Turn("user", "The parser"),
        (Turn("user", "reads"), Turn("assistant", "names"), Turn("user", "for each")),
    )
    found = answers(loaded, [ChatPrompt((user,), "a"), ChatPrompt(second, "b")], GREEDY)
    model = LanguageModel(loaded)
    # the end token between the turns has no text, so the second prompt is compared without it
    assert found[0] == model.generate("User: The parser\n\nAssistant:", temperature=0.0, max_new_tokens=12).strip()
    assert found[1]
    assert answers(loaded, [ChatPrompt(second, "b")], GREEDY) == found[1:], "alone as in a batch"
    assert answers(loaded, [], GREEDY) == []


def test_each_prompt_has_its_own_seed(loaded):
    prompts = [ChatPrompt((Turn("user", "The parser"),), "a")] * 3
    warm = ChatSettings(Sampling(1.0), max_new_tokens=12)
    first, second, again = answers(loaded, prompts, warm, seeds=[1, 2, 1])
    assert first == again != second


def test_a_prompt_that_does_not_fit_is_one_line(loaded):
    long = ChatPrompt((Turn("user", "word " * 100),), "--prompts p, record 3")
    with pytest.raises(ConfigError, match="--prompts p, record 3: "):
        answers(loaded, [long], GREEDY)
