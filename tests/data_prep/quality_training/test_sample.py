"""The training sample does not depend on how the corpora are sharded."""

import random

import numpy as np
import pytest
from quality_samples import documents, sample

from data_prep.documents.shards import Document, keyed_hash
from data_prep.filters.quality_classifier import term_counts
from data_prep.quality_training.sample import SampleConfig

pytest.importorskip("mmh3", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_every_sharding_gives_the_same_sample(tmp_path, prose):
    bad = [*documents("n", [prose(seed, 3) for seed in range(40)]), Document("blank", " \n ")]
    good = documents("p", [prose(100 + seed, 3) for seed in range(30)])
    good += [Document("copy", good[3].text), Document("copy too", good[3].text)]
    config = SampleConfig(seed=5, max_documents=25)
    contents = []
    for trial, n_shards in enumerate((1, 3)):
        random.Random(trial).shuffle(bad)
        random.Random(trial).shuffle(good)
        contents.append([path.read_bytes() for path in sample(tmp_path / str(trial), (bad, good), n_shards, config)])
    assert contents[0] == contents[1]
    rows, positive = (np.load(tmp_path / "0" / part) for part in ("rows", "labels"))
    assert (np.diff(rows["order"].astype(object)) >= 0).all()
    buckets, counts = (np.fromfile(tmp_path / "0" / part, dtype="<i4") for part in ("buckets", "counts"))
    by_order = {keyed_hash(document.id, key="sample 5"): document for document in bad + good}
    for kind, corpus in ((False, bad), (True, good)):
        chosen = sorted(corpus, key=lambda document: keyed_hash(document.id, key="sample 5"))[:25]
        texts = {document.text for document in chosen if document.text.strip()}
        mine = rows[positive == kind]
        assert {by_order[int(row["order"])].text for row in mine} == texts
        assert len(mine) == len(texts), "equal texts count once, blank ones not at all"
    for row in rows:
        expected = term_counts(by_order[int(row["order"])].text)
        where = slice(row["start"], row["stop"])
        assert np.array_equal(buckets[where], expected[0])
        assert np.array_equal(counts[where], expected[1])
