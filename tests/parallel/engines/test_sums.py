"""The sums of a step as one vector, which ranks can add up."""

import torch

from parallel.engines.sums import StepSums


def share(squared_norm, totals, raised):
    return StepSums.to_tensor(
        torch.tensor(squared_norm, dtype=torch.float64), torch.tensor(totals, dtype=torch.float64), raised
    )


def test_the_sum_of_two_ranks_vectors_has_the_sums_by_name():
    added = share(4.0, [10.0, 3.0, 0.5, 7.0], (True, False)) + share(5.0, [20.0, 4.0, 0.25, 1.0], (True, False))
    assert added.dtype == torch.float64
    sums = StepSums.from_tensor(added, metric_names=("z_loss", "accuracy"))
    assert sums == StepSums(9.0, 30.0, 7.0, {"z_loss": 0.75, "accuracy": 8.0}, (2.0, 0.0))


def test_there_may_be_no_metrics_and_no_flags():
    sums = StepSums.from_tensor(share(1.0, [2.0, 3.0], ()), metric_names=())
    assert sums == StepSums(1.0, 2.0, 3.0, {}, ())
