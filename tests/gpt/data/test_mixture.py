"""Plans of mixtures, against exact fractions of the weights and against runs over real files."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData, share_of_step
from gpt.data.mixture import MixtureConfig, PlannedCorpus, plan_mixture
from gpt.data.order import MIXTURE_BOUND
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFileWriter

# GPT-3, table 2.2: billions of tokens, weight in percent (101 in all).
TABLE_2_2 = {"common_crawl": (410, 60), "webtext2": (19, 22), "books1": (12, 8), "books2": (55, 8), "wikipedia": (3, 3)}


def planned(names: list[str]) -> list[PlannedCorpus]:
    return [PlannedCorpus(name=n, n_tokens=TABLE_2_2[n][0] * 10**9, weight=TABLE_2_2[n][1]) for n in names]


@pytest.mark.parametrize("tokens", [300 * 10**9, 10 * 10**12, 2**60])
def test_the_papers_table_comes_out_within_two_samples_of_the_weights(tokens: int) -> None:
    plan = plan_mixture(planned(list(TABLE_2_2)), seq_len=2048, planned_tokens=tokens)
    assert plan.samples == -(-tokens // 2048)
    assert sum(row.samples for row in plan.corpora) == plan.samples
    for row in plan.corpora:
        billions, weight = TABLE_2_2[row.name]
        exact = Fraction(weight, 101) * plan.samples
        assert abs(row.samples - exact) <= MIXTURE_BOUND
        assert row.realised_tokens == row.samples * 2048
        assert row.planned_tokens == pytest.approx(float(Fraction(weight, 101) * tokens), rel=1e-12)
        assert abs(row.error) < 1e-3, "the bar"
        windows = (billions * 10**9 - 1) // 2048
        assert row.epochs == row.samples / windows
        assert row.epochs == pytest.approx(weight / 101 * tokens / (billions * 1e9), rel=1e-6)


def test_the_order_of_the_rows_changes_no_figure() -> None:
    rows = [
        {row.name: row for row in plan_mixture(planned(list(names)), seq_len=2048, planned_tokens=10**9 + 7).corpora}
        for names in itertools.permutations(TABLE_2_2)
    ]
    assert all(other == rows[0] for other in rows)


def test_a_run_reads_at_every_step_what_the_plan_says_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Counted by the ids that are read from files. Within an epoch, no window of a corpus is read twice."""
    seq_len, per_step, lengths = 4, 12, {"a": 4001, "b": 53, "c": 18, "d": 700}
    weights = {"a": 60.0, "b": 22.0, "c": 8.0, "d": 8.0}
    for first_id, (name, n_tokens) in enumerate(lengths.items()):
        with TokenFileWriter(tmp_path / name, vocab_size=10**6) as writer:
            writer.add_document(first_id * 10_000 + np.arange(n_tokens))
    corpora = [CorpusConfig(path=str(tmp_path / name), weight=weights[name]) for name in lengths]
    described = [PlannedCorpus(name=name, n_tokens=n, weight=weights[name]) for name, n in reversed(lengths.items())]
    for ranks in (1, 3, 4):
        data = TrainingData(
            DataConfig(tokenizer="none", train=tuple(corpora), seq_len=seq_len), seed=5, vocab_size=10**6
        )
        read: dict[str, list[int]] = {name: [] for name in lengths}
        for step in range(60):
            shares = [
                share_of_step(step * per_step, n_samples=per_step, rank=rank, ranks=ranks) for rank in range(ranks)
            ]
            for start in np.concatenate([data.read(share).tokens for share in shares])[:, 0].tolist():
                read["abcd"[start // 10_000]].append(start % 10_000 // seq_len)
            plan = plan_mixture(
                described,
                seq_len=seq_len,
                planned_tokens=(step + 1) * per_step * seq_len,
                samples=(step + 1) * per_step,
            )
            assert {name: len(windows) for name, windows in read.items()} == {r.name: r.samples for r in plan.corpora}
            assert data.epochs((step + 1) * per_step) == {row.name: row.epochs for row in plan.corpora}
        for name, windows in read.items():
            size = (lengths[name] - 1) // seq_len
            for begin in range(0, len(windows), size):
                epoch = windows[begin : begin + size]
                assert len(set(epoch)) == len(epoch), "without replacement to the end of the epoch"
    assert len(read["c"]) > 10 * ((lengths["c"] - 1) // seq_len), "many epochs of the smallest were read"


def test_mistakes_are_named() -> None:
    one = PlannedCorpus(name="one", n_tokens=10_000)
    for corpora, message in [
        ([], "no corpus in the mixture"),
        ([one, one], "both have the name 'one'"),
        ([one, PlannedCorpus(name="short", n_tokens=2048)], "corpus 'short' has 2,048 tokens, .* needs 2,049"),
    ]:
        with pytest.raises(ConfigError, match=message):
            plan_mixture(corpora, seq_len=2048, planned_tokens=10**6)
    with pytest.raises(ConfigError, match=r"corpus 'w': weight = 0.0 is invalid: must be"):
        PlannedCorpus(name="w", n_tokens=1, weight=0.0)
    with pytest.raises(ConfigError, match=r"mixture.planned_tokens = 0 is invalid: must be at least 1"):
        MixtureConfig(planned_tokens=0, seq_len=8, corpora=(one,))
