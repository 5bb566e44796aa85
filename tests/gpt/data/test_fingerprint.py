"""A checkpoint's record of its data: streams, and a mask that changes nothing; test_dataset.py has the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.fingerprint import fingerprint, fingerprint_differences
from gpt.token_files.files import TokenFileWriter


def write(prefix: Path, n_tokens: int) -> str:
    """Write one document."""
    with TokenFileWriter(prefix, vocab_size=100) as file:
        file.add_document(np.arange(n_tokens))
    return str(prefix)


def record(folder: Path, *, sampling: Any = "document", document_mask: bool = False, **streams: int) -> dict[str, Any]:
    """The record of a corpus of one document with streams of these numbers of tokens, read from a checkpoint."""
    paths = {name: write(folder / f"{name}-{n_tokens}", n_tokens) for name, n_tokens in streams.items()}
    corpus = CorpusConfig(write(folder / "few", 20), streams=paths)
    config = DataConfig(tokenizer="none", train=(corpus,), seq_len=8, sampling=sampling, document_mask=document_mask)
    saved: dict[str, Any] = json.loads(json.dumps(fingerprint(TrainingData(config, seed=3, vocab_size=100))))
    return saved


def test_fingerprints_record_streams(tmp_path: Path) -> None:
    assert "streams" not in record(tmp_path)["corpora"][0], "as in 0.1"
    assert fingerprint_differences(record(tmp_path, label=1), record(tmp_path, label=1)) == []
    assert fingerprint_differences(record(tmp_path, label=1, mask=20), record(tmp_path, label=2, weight=20)) == [
        "stream 'mask' of corpus 'few' is gone",
        "stream 'weight' of corpus 'few' is new",
        "the number of tokens of stream 'label' of corpus 'few' was 1 and is now 2",
    ]
    assert fingerprint_differences(record(tmp_path), record(tmp_path, label=1)) == [
        "stream 'label' of corpus 'few' is new"
    ]


def test_the_document_mask_may_change_if_samples_are_documents(tmp_path: Path) -> None:
    plain, masked = (record(tmp_path, document_mask=mask) for mask in (False, True))
    assert fingerprint_differences(plain, masked) == fingerprint_differences(masked, plain) == []
    plain, masked = (record(tmp_path, sampling="window", document_mask=mask) for mask in (False, True))
    assert fingerprint_differences(plain, masked) == ["data.document_mask was False and is now True"]
