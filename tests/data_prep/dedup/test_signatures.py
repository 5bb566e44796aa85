"""A shard's rows have the band keys of its documents, and .about and .notes describe them."""

import json

import numpy as np
import pytest

from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.dedup.index import ABOUT, Notes, position, read_corpora
from data_prep.dedup.minhash import band_keys, permutations, shingles, signature
from data_prep.dedup.signatures import SignTask, sign_texts
from data_prep.dedup.sorted_rows import Limits
from data_prep.documents.shards import Document, write_shard

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.mark.parametrize("config", [FuzzyConfig(), FuzzyConfig(min_jaccard=0.7)], ids=["bands", "compared"])
def test_rows_have_the_band_keys_of_documents_with_words(tmp_path, prose, config):
    documents = [
        Document("a", prose(1)),
        Document("b ü", prose(2)),
        Document("none", "?!"),
        Document("c", "Just this."),
    ]
    with write_shard(tmp_path / "shard") as write:
        for document in documents:
            write(document)
    outputs = tuple(tmp_path / name for name in ("rows", "s.about", "s.notes"))
    result = sign_texts(SignTask(config.setting, Limits()), (tmp_path / "shard",), outputs)
    assert result.facts == {"documents": 4}
    rows = np.fromfile(outputs[0], config.setting.row_type)
    assert (np.diff(rows["key"].astype(object)) >= 0).all()
    for number, document in enumerate(documents):
        grams = shingles(document.text, 5)
        keys = band_keys(signature(grams, permutations(14 * 8))[None], 14, 8)[0] if len(grams) else []
        assert sorted(rows["key"][rows["position"] == number].tolist()) == sorted(map(int, keys))
    about = np.fromfile(outputs[1], ABOUT)
    assert about["n_bytes"].tolist() == [document.n_bytes for document in documents]
    index = {"format": "triaxial-dedup-index", "version": 1, "kind": "minhash", "setting": {}, "folder": "."}
    index |= {"shards": [{"name": "s", "documents": 4, "digests": ["", ""]}], "groups": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with Notes(read_corpora([tmp_path / "index.json"])) as notes:
        assert [notes.document_id(position(0, row)) for row in range(4)] == [document.id for document in documents]
        for row, document in enumerate(documents):
            expected = shingles(document.text, 5).tolist() if config.min_jaccard else []
            assert notes.grams(position(0, row), about[row]).tolist() == expected
