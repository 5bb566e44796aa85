"""Labels and scores meet by id."""

import numpy as np
import pytest
from moderation_files import labelled_and_scored, write_lines, write_taxonomy

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import read_taxonomy
from launch.moderation.loop.joined import common, joined, labelled_texts


def test_joins_in_the_order_of_the_labels_and_counts_the_rest(tmp_path):
    labels, scores, truth = labelled_and_scored(tmp_path, n=30)
    taxonomy = read_taxonomy(write_taxonomy(tmp_path))
    lines = scores.read_text().splitlines()
    scores.write_text("\n".join(reversed(lines[10:])))
    texts = labelled_texts([labels], taxonomy)[:25]
    found = joined(texts, [scores], taxonomy)
    assert [one.id for one in found.texts] == [f"t{i}" for i in range(10, 25)]
    np.testing.assert_array_equal(found.labels, truth[10:25])
    assert (found.unlabelled, found.unscored) == (5, 10)
    assert common(texts, {one.id for one in found.texts}, where="") == found.texts


def test_nothing_in_common_is_an_error(tmp_path):
    _, scores, _ = labelled_and_scored(tmp_path, n=5)
    taxonomy = read_taxonomy(write_taxonomy(tmp_path))
    texts = labelled_texts([write_lines(tmp_path / "o.jsonl", [{"id": "x", "text": "boat", "labels": {}}])], taxonomy)
    with pytest.raises(ConfigError, match=r"scores.jsonl has no score of the 1 labelled texts. Score these"):
        joined(texts, [scores], taxonomy)
