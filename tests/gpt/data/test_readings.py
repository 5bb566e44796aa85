"""Every position that reads a document is found, as reading all positions forwards shows."""

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.readings import positions_reading
from gpt.token_files.files import TokenFileWriter

LENGTHS = {"books": [90, 1, 37, 40], "web": [5, 0, 0, 12, 3, 1, 64, 15, 300]}


@pytest.mark.parametrize("sampling", ["window", "document", "packed"])
def test_positions_are_those_whose_location_names_the_document(tmp_path, sampling):
    for name, lengths in LENGTHS.items():
        with TokenFileWriter(tmp_path / name, vocab_size=50) as writer:
            for length in lengths:
                writer.add_document(np.zeros(length, dtype=np.int64))
    train = tuple(CorpusConfig(path=str(tmp_path / name), weight=w) for name, w in (("books", 0.3), ("web", 0.7)))
    config = DataConfig(tokenizer="none", train=train, seq_len=8, sampling=sampling)
    data, n_positions = TrainingData(config, seed=5, vocab_size=50), 200
    places = [data.locate(position) for position in range(n_positions)]
    for name, lengths in LENGTHS.items():
        for document in range(len(lengths)):
            expected = [
                position
                for position, place in enumerate(places)
                if place.corpus == name and any(d.document == document and d.n_tokens for d in place.documents)
            ]
            found = positions_reading(data, name, document, n_positions=n_positions)
            assert found == expected, "an empty document is in no sample, and a long one is read to its cut"
