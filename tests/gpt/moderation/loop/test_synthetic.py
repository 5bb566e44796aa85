"""Prompts have what they promise; answers are cleaned; noisy texts are refused."""

import pytest

from gpt.moderation.loop.synthetic import MAX_EXAMPLE, cleaned, noise_check, one_line_of, synthetic_prompt
from gpt.moderation.taxonomy import Category

BOATS = Category("A", "Boats", "The text is\nabout boats.", instructions="Ships count.")


def test_zero_shot_prompts_have_the_definition_and_few_shot_ones_the_examples():
    zero = synthetic_prompt(BOATS, positive=True)
    assert zero.startswith("Boats: The text is about boats. Ships count.")
    assert zero.endswith("Texts that belong to the category Boats:\n1.")
    few = synthetic_prompt(BOATS, positive=False, examples=["one\ncar", "two", "three"], shots=2, seed=1)
    assert "do not belong to" in few
    assert few.endswith("\n3.")
    assert few == synthetic_prompt(BOATS, positive=False, examples=["one\ncar", "two", "three"], shots=2, seed=1)
    seeds = {synthetic_prompt(BOATS, positive=True, examples=["a", "b", "c"], shots=2, seed=i) for i in range(9)}
    assert len(seeds) > 1
    chat = synthetic_prompt(BOATS, positive=True, examples=["x"], shots=5, chat=True)
    assert "Examples:\n1. x\n" in chat
    assert chat.endswith("Answer with the text only.")
    assert len(one_line_of("a " * 999)) == MAX_EXAMPLE


def test_answers_are_one_line_and_no_copies():
    answers = [' "a boat at sea"\nmore', "A  boat at SEA", "12 3!", "", "the known text", "another boat"]
    assert cleaned(answers, known=["The known  text"]) == ["a boat at sea", None, None, None, None, "another boat"]


def test_noisy_texts_are_refused():
    nan = float("nan")
    found = noise_check([[1, nan], [1, 0], [0, 1]], [[1, 1], [0, 0], [0, nan]], min_agreement=0.75)
    assert (found.checked, found.agreeing, found.accepted) == (4, 3, True)
    assert found.share.low < 0.75 < found.share.high
    assert not noise_check([1, 1], [1, 0]).accepted
    assert not noise_check([nan], [1]).accepted
    assert noise_check([1], [1]).share.estimate == pytest.approx(1)
