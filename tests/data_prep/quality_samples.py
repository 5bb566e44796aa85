"""Draw the classifier's training sample in the tests of data_prep/quality_training."""

from pathlib import Path

from data_prep.documents.shards import Document, write_shard
from data_prep.quality_training.sample import SampleConfig, SampleGatherTask, count_terms, gather_sample


def sample(folder: Path, corpora, n_shards: int, config: SampleConfig) -> tuple[Path, ...]:
    """Draw the sample of (negative, positive) documents, each in `n_shards` shards; return its files."""
    folder.mkdir()
    inputs = []
    for kind, documents in enumerate(corpora):
        for number in range(n_shards):
            shard = folder / f"{kind}-{number}.zst"
            with write_shard(shard) as write:
                for document in documents[number::n_shards]:
                    write(document)
            outputs = tuple(folder / f"{kind}-{number}.{part}" for part in ("rows", "buckets", "counts"))
            count_terms(config, (shard,), outputs)
            inputs += outputs
    outputs = tuple(folder / part for part in ("rows", "labels", "buckets", "counts"))
    gather_sample(SampleGatherTask(config, n_shards), tuple(inputs), outputs)
    return outputs


def documents(name: str, texts: list[str]) -> list[Document]:
    return [Document(f"{name}{number}", text) for number, text in enumerate(texts)]
