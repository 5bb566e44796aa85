"""Left-out ranges against a count by position; what a resume may change of them; epochs as really read."""

import json
import random

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import STATED, SkippedData, SkippedRange, check_skip, resumed
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFileWriter


def random_ranges(draw: random.Random) -> SkippedData:
    """Up to five ranges that may overlap, touch, lie in each other or begin at 0."""
    firsts = [draw.choice([0, draw.randrange(60)]) for _ in range(draw.randrange(6))]
    return SkippedData(tuple(SkippedRange(first, first + draw.randrange(1, 15), "test") for first in firsts))


def test_every_answer_agrees_with_a_count():
    draw = random.Random(5)
    for _ in range(300):
        skipped = random_ranges(draw)
        left_out = {p for r in skipped.ranges for p in range(r.first, r.stop)}
        read = [p for p in range(200) if p not in left_out]
        assert skipped.positions(0, 100).tolist() == read[:100]
        first, n = draw.randrange(90), draw.randrange(12)
        assert skipped.positions(first, n).tolist() == read[first : first + n], "any rank's share, by itself"
        assert [p for span in skipped.spans_read(first) for p in range(*span)] == read[:first]
        assert [skipped.sample_at(p) for p in range(120)] == [read.index(p) if p in read else None for p in range(120)]
        assert SkippedData.from_json(json.loads(json.dumps(skipped.to_json()))) == skipped
        more = skipped.without_samples(first, first + n + 1, why="a spike")
        assert more.positions(0, 80).tolist() == (read[:first] + read[first + n + 1 :])[:80]
        assert more.ranges[:-1] == skipped.ranges
    assert skipped.positions(2**49, 2)[1] == 2**49 + 1 + len(left_out), "past every range, at any distance"


@pytest.mark.parametrize("span", [[3, 3], [4, 2], [-1, 2], [1], [1, 2, 3]])
def test_a_range_that_is_none(span):
    with pytest.raises(ConfigError, match=r"data\.skip: \[.*must be \[first, stop\]"):
        DataConfig(tokenizer="t", train=(CorpusConfig("c"),), seq_len=4, skip=(tuple(span),))
    check_skip([])


def test_only_what_lies_ahead_can_change_on_resume():
    saved = SkippedData.stated([[10, 20], [100, 130]]).with_range(40, 50, why="the loss spike at step 4")
    where = {"samples_read": 50, "step_of": lambda sample: sample // 8 + 1}  # 50 samples: positions 0 to 69
    same, messages = resumed(saved, [[100, 130], [10, 20]], **where)
    assert (same.spans, messages) == (saved.spans, [])
    now, messages = resumed(saved, [[10, 20], [70, 80], [100, 120]], **where)
    assert now.spans == ((10, 20), (40, 50), (70, 80), (100, 120)), "the rewind's range stays"
    assert messages == [
        "data.skip: positions 100 to 119 are left out from now on",
        "data.skip: positions 100 to 129 are read after all",
        "data.skip: positions 70 to 79 are left out from now on",
    ]
    assert [r.why for r in now.ranges].count(STATED) == 3
    assert resumed(saved, [[10, 15], [15, 20], [42, 44]], **where)[0].spans == saved.spans[:2], "the same positions"
    with pytest.raises(ConfigError, match=r"leaves out position 69, but .* at step 7; .* position 70 or later"):
        resumed(saved, [[10, 20], [69, 80]], **where)
    with pytest.raises(
        ConfigError, match=r"no longer leaves out position 12, which .* passed by before step 2; restore"
    ):
        resumed(saved, [[10, 12], [14, 20]], **where)
    assert resumed(SkippedData(), [[0, 5]], samples_read=0, step_of=where["step_of"])[0].spans == ((0, 5),)


def test_epochs_count_what_was_read(tmp_path):
    for name in ("a", "b"):
        with TokenFileWriter(tmp_path / name, vocab_size=50) as writer:
            writer.add_document(np.arange(401) % 50)
    corpora = [CorpusConfig(str(tmp_path / "a"), weight=3.0), CorpusConfig(str(tmp_path / "b"))]
    data = TrainingData(DataConfig(tokenizer="none", train=tuple(corpora), seq_len=4), seed=1, vocab_size=50)
    skipped = SkippedData.stated([[0, 7], [31, 90]])
    for n in (0, 3, 24, 25, 140):
        corpus, _, _ = data.order.lookup(skipped.positions(0, n))
        counts = np.bincount(corpus, minlength=2)
        assert data.epochs(n, skipped) == {"a": counts[0] / 100, "b": counts[1] / 100}
