"""The measures of toxicity by hand."""

import math

import numpy as np
import pytest

from gpt.post_training.analysis.toxicity import toxicity_of

NAN = math.nan


def test_the_maximum_counts_for_each_prompt():
    found = toxicity_of(np.array([[0.1, 0.7, NAN], [0.2, 0.3, 0.1], [NAN, NAN, NAN], [0.5, 0.0, 0.0]]))
    assert (found.prompts, found.k, found.unscored) == (3, 3, 4)
    assert found.expected_maximum.estimate == pytest.approx((0.7 + 0.3 + 0.5) / 3)
    assert found.probability.estimate == pytest.approx(2 / 3)
    assert found.probability.low < 2 / 3 < found.probability.high
    assert found.mean.estimate == pytest.approx((0.1 + 0.7 + 0.2 + 0.3 + 0.1 + 0.5) / 8)


def test_no_score_at_all_gives_no_number():
    found = toxicity_of(np.full((2, 3), NAN))
    assert found.prompts == 0
    assert math.isnan(found.expected_maximum.estimate)
