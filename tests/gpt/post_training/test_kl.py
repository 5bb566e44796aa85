"""KL estimators: unbiased on a small vocabulary, never counting padding; and the adaptive coefficient."""

import pytest
import torch

from gpt.post_training.kl import adapted_beta, kl_estimate, kl_per_response


@pytest.fixture
def policies():
    """Log-probabilities of two policies over 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_is_the_divergence(policies, estimator):
    pi, reference = policies
    exact = (pi.exp() * (pi - reference)).sum()
    each = kl_estimate(pi[None], reference[None], torch.ones(1, 5, dtype=torch.bool), estimator=estimator)
    torch.testing.assert_close((pi.exp() * each[0]).sum(), exact, rtol=1e-12, atol=1e-12)


def test_k2_is_half_the_square(policies):
    pi, reference = policies[:, None]
    found = kl_estimate(pi, reference, torch.ones(1, 5, dtype=torch.bool), estimator="k2")
    torch.testing.assert_close(found, (pi - reference) ** 2 / 2, rtol=1e-12, atol=0)


def test_only_k1_can_be_negative(policies):
    """TRL 1857 and 1161: a negative KL without a diagnosis."""
    pi, reference = policies[:, None]
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert (kl_estimate(pi, reference, mask, estimator="k1") < 0).any()
    for estimator in ("k2", "k3"):
        assert (kl_estimate(pi, reference, mask, estimator=estimator) >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_padding_and_its_width_do_not_count(estimator):
    """rlhf-book PR 216, verl 2996: means over padding, and KL that depends on how rows are grouped."""
    pi = torch.tensor([[-1.0, -2.0, float("nan")], [-0.5, float("inf"), 7.0]])
    reference = torch.tensor([[-1.5, -1.0, 3.0], [-0.25, 8.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    together = kl_per_response(kl_estimate(pi, reference, mask, estimator=estimator), mask)
    alone = [
        kl_per_response(
            kl_estimate(pi[i : i + 1, :n], reference[i : i + 1, :n], mask[i : i + 1, :n], estimator=estimator),
            mask[i : i + 1, :n],
        )
        for i, n in ((0, 2), (1, 1))
    ]
    assert torch.equal(together, torch.cat(alone))


def test_beta_follows_the_divergence():
    assert adapted_beta(0.1, 6.0, target=6.0, horizon=1000, episodes=100) == 0.1
    assert adapted_beta(0.1, 60.0, target=6.0, horizon=1000, episodes=100) == pytest.approx(0.102)
    assert adapted_beta(0.1, -5.0, target=6.0, horizon=1000, episodes=100) == pytest.approx(0.098)
    assert adapted_beta(0.1, 6.6, target=6.0, horizon=1000, episodes=100) == pytest.approx(0.101)
