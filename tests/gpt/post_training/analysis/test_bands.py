"""Healthy bands as values of one run."""

import numpy as np

from gpt.post_training.analysis.bands import BANDS
from gpt.post_training.analysis.series import IterationSeries

SERIES = IterationSeries(np.arange(5), np.full(5, 40.0))


def test_bounds_are_values_factors_of_the_start_or_differences_to_it():
    bands = {band.metric: band for band in BANDS}
    assert bands["kl"].bounds(SERIES) == (0.0, 10.0)
    assert bands["length"].bounds(SERIES) == (32.0, 48.0)
    assert bands["ptx_loss"].bounds(SERIES) == (None, 40.02)
    assert bands["reward"].bounds(SERIES) == (None, None)


def test_every_band_says_where_it_comes_from():
    for band in BANDS:
        assert bool(band.source) == bool(band.text) == (band.bounds(SERIES) != (None, None))
