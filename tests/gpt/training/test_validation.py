"""Validation batches: the data ranks share the samples, and padding and damaged samples contribute no loss.

tests/launch/training/test_damaged_data.py evaluates damaged corpora in a run.
"""

from pathlib import Path

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import ValidationData
from gpt.losses.base import Loss
from gpt.losses.next_token import NextTokenLoss
from gpt.post_training.dpo import PreferenceLoss
from gpt.post_training.reward import RewardLoss
from gpt.token_files.files import TokenFileWriter
from gpt.training.engine import Totals
from gpt.training.objective import NextToken
from gpt.training.validation import Best, best_of, validation_batches, validation_names, validation_values

SEQ_LEN, WINDOWS = 4, 11


@pytest.fixture
def corpus(tmp_path: Path) -> ValidationData:
    """Token ids count up, so the first token of window i is 4 * i."""
    with TokenFileWriter(tmp_path / "corpus", vocab_size=100) as file:
        file.add_document(np.arange(SEQ_LEN * WINDOWS + 1))
    config = CorpusConfig(path=str(tmp_path / "corpus"))
    return ValidationData(config, DataConfig(tokenizer="none", seq_len=SEQ_LEN, train=(config,)), vocab_size=100)


@pytest.mark.parametrize(("data_size", "per_rank"), [(1, 1), (1, 4), (2, 3), (3, 2), (5, 4)])
@pytest.mark.parametrize("without", [{}, {3: "damaged", 10: "damaged"}])
def test_every_sample_is_read_by_one_rank_in_batches_of_one_shape(
    corpus: ValidationData, data_size: int, per_rank: int, without: dict[int, str]
) -> None:
    read: list[int] = []
    n_batches = set()
    found: dict[int, str] = {}
    for data_rank in range(data_size):
        batches = list(
            validation_batches(
                corpus,
                NextToken(),
                WINDOWS - 1,
                per_rank=per_rank,
                data_rank=data_rank,
                data_size=data_size,
                without=without,
                found=found,
            )
        )
        n_batches.add(len(batches))
        for batch in batches:
            assert batch.inputs.shape == batch.targets.shape == (per_rank, SEQ_LEN)
            for row in range(per_rank):
                if batch.loss_mask is None or batch.loss_mask[row].all():
                    assert (batch.targets[row] == batch.inputs[row] + 1).all()
                    read.append(int(batch.inputs[row, 0]) // SEQ_LEN)
                else:
                    assert not batch.loss_mask[row].any(), "a sample counts whole or not at all"
    assert sorted(read) == [sample for sample in range(WINDOWS - 1) if sample not in without]
    assert len(n_batches) == 1, "the ranks must call the engine equally often"
    assert not found


def test_values_are_the_loss_and_its_perplexity() -> None:
    results = {"wiki": Totals(20.0, 10), "web": Totals(8000.0, 10, {"accuracy": 0.5})}
    values = validation_values(results, NextTokenLoss())
    assert values["validation/wiki/loss"] == 2.0
    assert values["validation/wiki/perplexity"] == pytest.approx(np.exp(2.0))
    assert np.isfinite(values["validation/web/perplexity"]), "a huge loss does not overflow"
    assert values["validation/web/accuracy"] == 0.5


@pytest.mark.parametrize("loss", [RewardLoss(), PreferenceLoss(beta=0.1)])
def test_a_loss_over_pairs_has_no_perplexity(loss: Loss) -> None:
    values = validation_values({"held": Totals(6.9, 10, dict.fromkeys(loss.evaluation_names, 0.5))}, loss)
    metrics = ("loss", "accuracy", "margin", "reward")
    assert [*values] == [f"validation/held/{metric}" for metric in metrics] == validation_names(["held"], loss)


def test_the_best_is_the_first_of_the_lowest_or_highest_finite_values() -> None:
    values = [float("nan"), 3.0, 2.0, float("-inf"), 2.0, 5.0, 5.0]
    for best_is, expected in (("lowest", Best(2, 2.0)), ("highest", Best(5, 5.0))):
        best = None
        for step, value in enumerate(values):
            best = best_of(best, {"other": -9.0, "loss": value}, step=step, name="loss", best_is=best_is)  # type: ignore[arg-type]
            assert (best is None) == (step == 0)
        assert best == expected
    assert best_of(expected, {}, step=9, name="loss", best_is="lowest") == expected
    assert Best.from_json({"step": 2, "value": 2.0}) == Best(2, 2.0)
