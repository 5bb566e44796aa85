"""The sums of a step as one vector, which ranks can add up."""

import math

import pytest
import torch

from parallel.engines.sums import StepSums, add_totals, evaluation_totals


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


@pytest.mark.parametrize(
    ("loss", "count", "norm", "raised", "skipped", "discarded"),
    [
        (6.0, 3.0, 0.5, (0.0, 2.0, 0.0), False, False),
        (math.nan, 3.0, 0.5, (0.0, 0.0, 0.0), True, False),
        (6.0, 3.0, math.inf, (0.0, 0.0, 0.0), True, False),
        (0.0, 0.0, 0.0, (0.0, 0.0, 0.0), True, False),
        (math.nan, 3.0, 0.5, (1.0, 0.0, 1.0), False, True),
    ],
)
def test_a_step_updates_only_on_finite_sums_of_some_targets(loss, count, norm, raised, skipped, discarded):
    result = StepSums(norm**2, loss, count, {"z_loss": 1.5}, raised).result(norm)
    assert (result.skipped, result.discarded, result.updated) == (skipped, discarded, not (skipped or discarded))
    assert result.flags == tuple(n > 0 for n in raised[1:])
    assert result.loss.metrics == {"z_loss": 1.5 / max(count, 1.0)}


def test_an_evaluation_adds_micro_batches_up_and_has_means():
    cpu = torch.device("cpu")
    parts = [tuple(map(torch.tensor, numbers)) for numbers in ((4.0, 2, 1.0), (6.0, 3, 0.5))]
    assert add_totals([], metrics=1, device=cpu).tolist() == [0.0, 0.0, 0.0]
    totals = evaluation_totals(add_totals(parts, metrics=1, device=cpu), names=("accuracy",))
    assert (totals.loss_sum, totals.tokens, totals.mean, totals.metrics) == (10.0, 5, 2.0, {"accuracy": 0.3})
