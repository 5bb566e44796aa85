"""Perturbations change the texts as their names say, equally in every run."""

import numpy as np
import pytest

from gpt.moderation.probes.perturbations import (
    HOMOGLYPHS,
    PERTURBATIONS,
    perturbation_effects,
    perturbed,
)

TEXT = "the small boats sail across a quiet harbour"


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_is_a_function_of_text_and_seed(name):
    assert perturbed(TEXT, name, seed=1) == perturbed(TEXT, name, seed=1)
    assert len({perturbed(TEXT, name, seed=seed) for seed in range(10)}) > 1
    assert perturbed(TEXT, name) != TEXT
    assert perturbed("", name) == ""


def test_each_rewrites_as_it_says():
    assert perturbed("boats sail", "spacing", share=1) == "b o a t s s a i l"
    assert perturbed("boats sail", "leetspeak", share=1) == "80475 5411"
    assert perturbed("boats sail", "hashtags", share=1) == "#boats #sail"
    glyphs = perturbed("boats", "homoglyphs", share=1)
    assert glyphs != "boats"
    assert len(glyphs) == 5
    assert not any(letter in glyphs for letter in "aos")
    assert all(value.isalpha() and ord(value) > 127 for value in HOMOGLYPHS.values())
    for seed in range(20):
        word = perturbed("harbour", "misspelling", share=1, seed=seed)
        assert abs(len(word) - 7) <= 1
        assert (word[0], word[-1]) == ("h", "r")
    assert perturbed("a bc", "misspelling", share=1) == "a bc"


def test_a_share_of_the_words_is_changed_and_at_least_one():
    words = perturbed(TEXT, "hashtags", share=0.5).split()
    assert sum(word.startswith("#") for word in words) == 4
    assert perturbed("boats", "hashtags", share=0.01) == "#boats"


def test_effects_count_the_flags_that_are_lost():
    def score(texts):
        return np.array([[0.9 if "boats" in text else 0.2] for text in texts])

    found = {one.name: one for one in perturbation_effects(score, [TEXT, "a"], ["A"], thresholds=[0.5], share=1)}
    assert found["spacing"].flagged_before == 1
    assert found["spacing"].still_flagged == 0
    assert found["spacing"].mean_change == pytest.approx(-0.35)
    assert found["hashtags"].still_flagged == 1
    assert {one.texts for one in found.values()} == {2}
