"""Rankings in token files: where completions end, and which corpora are refused."""

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.sampling import CorpusFiles, Samples, read_samples
from gpt.data.sampling_rules import sampling_of
from gpt.errors import ConfigError
from gpt.losses.marks import IGNORE, PADDING
from gpt.post_training.rankings import check_rankings, ranked_rows, slots
from gpt.token_files.files import TokenFileWriter


def write(folder, documents):
    """Token files `rank` and `rank_marks` of documents [(length, level), ...]; level None leaves the mark out."""
    with (
        TokenFileWriter(folder / "rank", vocab_size=50) as tokens,
        TokenFileWriter(folder / "rank_marks", vocab_size=50) as marks,
    ):
        for document in documents:
            tokens.add_document(np.arange(sum(length for length, _ in document)) % 50)
            parts = [[0] * (length - 1) + [0 if level is None else level + 1] for length, level in document]
            marks.add_document(np.concatenate(parts))


def opened(folder, *, seq_len, sampling="document"):
    corpus = CorpusConfig(f"{folder}/rank", streams={"marks": f"{folder}/rank_marks"})
    config = DataConfig(tokenizer="none", train=(corpus,), seq_len=seq_len, sampling=sampling)
    return CorpusFiles(corpus, sampling_of(config, corpus))


def test_a_row_gives_the_ends_levels_and_prompts_of_its_completions():
    """Two prompts in the first row, of two and one completions; the second row ends in padding; the last column of
    t + 1 is left out."""
    marks = np.array([[0, 2, 1, 0, 3, 0], [0, 1, 0, 0, 0, 0]])
    ids = np.array([[0, 0, 0, 1, 1, 1], [0, 0, PADDING, PADDING, PADDING, PADDING]])
    rows = ranked_rows(Samples(np.zeros((2, 6), dtype=np.int64), ids, {"marks": marks}))
    assert rows.sequences.tolist() == [[0, 0, 1, 3, 3], [0, 0, *[PADDING] * 3]]
    assert rows.ends.shape == rows.levels.shape == rows.prompts.shape == (2, slots(5))
    assert rows.ends[:, :4].tolist() == [[1, 2, 4, 0], [1, 0, 0, 0]]
    assert rows.levels[:, :4].tolist() == [[1, 0, 2, IGNORE], [0, *[IGNORE] * 3]]
    assert rows.prompts[:, :4].tolist() == [[0, 0, 1, PADDING], [0, *[PADDING] * 3]]


def test_packed_rows_hold_whole_prompts(tmp_path):
    """Also a row that prompts fill to the last of seq_len tokens."""
    documents = [[(3, 0), (2, 1)], [(2, 1), (2, 0)], [(4, 1), (3, 0)]]
    write(tmp_path, documents)
    files = opened(tmp_path, seq_len=9, sampling="packed")
    assert check_rankings(files, n_ctx=5) == []
    samples = read_samples([(files, 0), (files, 1)], corpora=[files], seq_len=9, vocab_size=50, segments=False)
    rows = ranked_rows(samples)
    assert rows.sequences.tolist() == [[0, 0, 0, 1, 1, 3, 3, 4, 4], [0, 0, 0, 0, 1, 1, 1, PADDING, PADDING]]
    assert rows.ends[:, :5].tolist() == [[2, 4, 6, 8, 0], [3, 6, 0, 0, 0]]
    assert rows.prompts[:, :5].tolist() == [[0, 0, 1, 1, PADDING], [0, 0, PADDING, PADDING, PADDING]]


def test_blank_rows_have_no_completion():
    blank = Samples(
        np.zeros((1, 6), dtype=np.int64), np.full((1, 6), PADDING), {"marks": np.zeros((1, 6), dtype=np.int64)}
    )
    assert (ranked_rows(blank).levels == IGNORE).all()


def test_windows_are_refused(tmp_path):
    samples = Samples(np.zeros((1, 6), dtype=np.int64), None, {"marks": np.zeros((1, 6), dtype=np.int64)})
    with pytest.raises(
        ConfigError, match=r"data\.sampling = 'window' is invalid for rankings: a row must hold a prompt"
    ):
        ranked_rows(samples)
    write(tmp_path, [[(3, 0), (3, 1)]] * 3)
    with pytest.raises(
        ConfigError, match=r"data\.sampling = 'window' is invalid for rankings: a row must hold a prompt"
    ):
        check_rankings(opened(tmp_path, seq_len=4, sampling="window"), n_ctx=8)


def test_a_good_corpus_says_nothing_and_prompts_without_a_pair_are_counted(tmp_path):
    good = [[(3, 0), (4, 1), (2, 1)], [(5, 2), (4, 0)]]
    write(tmp_path, good)
    assert check_rankings(opened(tmp_path, seq_len=9), n_ctx=5) == []
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", [*good, [(4, 0)], [(2, 1), (3, 1)], [(2, 0), (2, 0)]])
    assert check_rankings(opened(tmp_path / "more", seq_len=9), n_ctx=5) == [
        "corpus 'rank': 3 of 5 prompts have no pair and teach nothing (1 with fewer than two completions, 2 with ties "
        "only)"
    ]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [[(3, 0), (3, 1)], [(6, 0), (6, 1)]],
            r"data\.seq_len = 9 is invalid: in corpus 'rank', document 1 is a prompt with completions of 12 tokens "
            r"together.* Use data\.seq_len = 12 or more",
        ),
        ([[(3, 0), (3, 1)], [(2, 0), (6, 1)]], r"document 1 has a conversation of 6 tokens.*model\.n_ctx = 5"),
        ([[(3, 0), (3, None)]], r"stream 'marks': document 0 has no mark on its last token"),
        (
            [[(3, 0)], [(2, 1), (2, 1)]],
            r"no pair to learn from in 2 prompts \(1 with fewer than two completions, 1 with ties only\)",
        ),
    ],
)
def test_a_corpus_that_does_not_fit_is_refused(tmp_path, documents, message):
    write(tmp_path, documents)
    with pytest.raises(ConfigError, match=message):
        check_rankings(opened(tmp_path, seq_len=9), n_ctx=5)


def test_more_completions_than_slots_are_refused(tmp_path):
    write(tmp_path, [[(1, i % 2) for i in range(slots(100) + 1)]])
    with pytest.raises(
        ConfigError, match=r"65 completions in a row are invalid: at most 64 fit with data\.seq_len = 100"
    ):
        check_rankings(opened(tmp_path, seq_len=100), n_ctx=5)
