"""A document's split and order depend on its id alone."""

import pytest

from data_prep.corpus.split import SplitConfig
from data_prep.documents.shards import piece_id

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_pieces_of_a_document_are_in_its_split():
    split = SplitConfig(validation_fraction=0.25, seed=3)
    ids = [f"doc-{n}" for n in range(2000)]
    share = sum(map(split.is_validation, ids)) / len(ids)
    assert abs(share - 0.25) < 0.03
    assert all(split.is_validation(piece_id(name, 4)) == split.is_validation(name) for name in ids)


def test_the_seed_changes_split_and_order():
    one, other = SplitConfig(0.25, 3), SplitConfig(0.25, 4)
    ids = [f"doc-{n}" for n in range(200)]
    assert sorted(ids, key=one.order) != sorted(ids, key=other.order)
    assert [one.is_validation(name) for name in ids] != [other.is_validation(name) for name in ids]
    assert all(0 <= one.order(name) < 2**64 for name in ids)
