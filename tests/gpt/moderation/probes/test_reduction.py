"""Input reduction keeps the words on which a score depends."""

import numpy as np
import pytest

from gpt.moderation.probes.reduction import reduce_texts
from gpt.moderation.probes.scoring import checked_scores


def score(texts):
    """Category 1 depends on two words, each of which adds 0.45."""
    high = [0.05 + 0.45 * ("red" in text.split()) + 0.45 * ("cat" in text.split()) for text in texts]
    return np.stack([np.zeros(len(texts)), np.array(high)], axis=1)


def test_keeps_the_words_that_matter():
    texts = ["a red bird and one cat there", "a red bird", "red cat", "cat", "red x cat"]
    found = reduce_texts(score, texts, 1)
    assert [one and one.text for one in found] == ["red cat", None, "red cat", None, "red cat"]
    assert found[0].kept == (1, 5)
    assert (found[0].characters_before, found[0].characters_after) == (28, 7)
    assert found[0].score_before == found[0].score_after == pytest.approx(0.95)
    (lower,) = reduce_texts(score, ["a red bird and one cat there"], 1, limit=0.4)
    assert lower.text in ("red", "cat")


def test_long_texts_are_left_out_and_no_text_is_no_result():
    assert reduce_texts(score, ["red cat " * 5], 1, max_words=9) == [None]
    assert reduce_texts(score, [], 1) == []


def test_refuses_scores_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        checked_scores(lambda texts: np.zeros(len(texts)), ["a"])
