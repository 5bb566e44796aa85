"""Scores of given tokens equal a log-softmax over all logits.

tests/launch/evaluation/test_on_ranks.py scores with a sharded vocabulary on real ranks.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.inference.token_scores import token_scores
from gpt.losses.linear_cross_entropy import chunk_tokens


@pytest.mark.parametrize(("vocab_size", "n_indices"), [(30, 9), (270_000, 100)])
def test_scores_equal_a_log_softmax(vocab_size: int, n_indices: int) -> None:
    """With repeated indices, and with rows of the head beyond the vocabulary, which get no probability.

    100 indices of a large vocabulary need several chunks.
    """
    assert (n_indices > chunk_tokens(vocab_size, torch.device("cpu"))) == (n_indices == 100)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 60, 4, generator=generator)
    head = nn.Linear(4, vocab_size + 2, bias=False)
    head.weight.data = torch.randn(vocab_size + 2, 4, generator=generator)
    chosen = torch.randperm(120, generator=generator)[:n_indices].sort().values
    indices = torch.cat((chosen, chosen[:5])).sort().values
    with torch.inference_mode():
        expected = head(hidden.flatten(0, 1)[indices])[:, :vocab_size].log_softmax(-1)
        likeliest = expected.argmax(-1)
        targets = torch.where(torch.arange(len(indices)) % 3 == 0, likeliest, (likeliest + 1) % vocab_size)
        log_probs, greedy = token_scores(hidden, head, indices=indices, targets=targets, vocab_size=vocab_size)
    torch.testing.assert_close(log_probs, expected.gather(1, targets.unsqueeze(1)).squeeze(1), rtol=0, atol=1e-4)
    assert torch.equal(greedy, likeliest == targets)


def test_a_pass_without_targets_does_not_run_the_head() -> None:
    none = torch.zeros(0, dtype=torch.int64)

    def head(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the head must not run")

    log_probs, greedy = token_scores(torch.zeros(1, 2, 4), head, indices=none, targets=none, vocab_size=3)
    assert log_probs.numel() == greedy.numel() == 0


def test_no_chunk_selects_by_a_mask() -> None:
    """A GPU would make the host wait for the number of chosen elements, once for each mask and chunk."""
    masks: list[str] = []

    class Masks(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            of_index = tree_leaves(args[1]) if func.name().startswith("aten::index") else []
            masks.extend(func.name() for one in of_index if isinstance(one, Tensor) and one.dtype == torch.bool)
            if func.name().startswith("aten::nonzero"):
                masks.append(func.name())
            return func(*args, **(kwargs or {}))

    head = nn.Linear(4, 270_000, bias=False)
    indices, targets = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    with torch.inference_mode(), Masks():
        token_scores(torch.zeros(1, 100, 4), head, indices=indices, targets=targets, vocab_size=270_000)
    assert not masks
