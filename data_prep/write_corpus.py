"""Do the last steps of a recipe, from clean shards to the corpus folder: tokenizer, token ids, files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.corpus import SPLITS, describe, entropy_nats, publish, shard_names
from data_prep.corpus.few_documents import with_both_splits
from data_prep.corpus.shards import FILE_ENDINGS, WRITE, FileTask
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TOKENIZE
from data_prep.corpus.tokenizer_training import SAMPLE, TRAIN, SampleTask, TrainTask, sample_bound
from data_prep.documents.arrays import read_array
from data_prep.execution.fingerprint import versions
from data_prep.execution.shard_runs import SHARD_ENDING, ShardRun, Shards
from data_prep.execution.tasks import FinishedTask, Task, plain
from data_prep.filters.quality_classifier import model_digest
from data_prep.recipe import PrepareConfig
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, tokenizer_files

_PACKAGES = ("isal", "numpy", "pycld2", "resiliparse", "sentencepiece", "tiktoken", "xxhash", "zstandard")


def write_corpus(run: ShardRun, config: PrepareConfig, shards: Shards, *, more: Mapping[str, Any]) -> dict[str, Any]:
    """Train the tokenizer if none is given, tokenize, write the files and publish them; return corpus.json's content.

    `more`: further keys for corpus.json. ConfigError: a split, or a file of it, would have no document.
    """
    division = with_both_splits(run, config.output.split, shards)
    model = config.tokenizer.path or _train_tokenizer(run, config, division, shards)
    sources = (model,) if config.tokenizer.path is None else tokenizer_files(model)
    # The stage loads the tokenizer from the last file alone: from a merges file it finds the vocabulary next to it.
    tasks = [Task(division, (path, *reversed(sources)), _tokens_and_rows(run, name)) for name, path in shards.items()]
    totals = _totals(run.tasks(TOKENIZE, tasks))
    run.workspace.check(sources)
    tokenizer = load_tokenizer(model)
    _check_splits(totals, config)
    tokenized = tuple(path for task in tasks for path in task.outputs)
    names = {
        split: shard_names(prefix, -(-totals[split]["tokens"] // config.output.shard_tokens))
        for split, prefix in SPLITS.items()
    }
    written = _write_files(run, names, tokenizer.vocab_size, tokenized)
    run.workspace.no_more_tasks()
    for split in SPLITS:
        _check_files(names[split], written[split], config)
    run.workspace.check([finished.task.outputs[3] for split in SPLITS for finished in written[split]])
    files = {path.name: path for split in SPLITS for finished in written[split] for path in finished.task.outputs[:3]}
    published = dict(zip(_published_names(sources), sources, strict=True))
    recipe = plain(config)
    recipe["output"] = {**plain(division), "shard_tokens": config.output.shard_tokens}
    if config.classify.model is not None:
        recipe["classify"]["model_sha256"] = model_digest(config.classify.model)
    description = describe(
        {split: _describe_split(totals[split], names[split], written[split]) for split in SPLITS},
        _describe_tokenizer(tokenizer, published),
        recipe=recipe,
        steps=[counts.as_dict() for counts in run.counts],
        versions=versions(_PACKAGES),
        more=more,
    )

    def publish_intact() -> None:
        run.workspace.check(list(files.values()))
        publish(config.output.corpus_folder, published | files, description)

    run.workspace.run_once(publish_intact)
    return description


def _train_tokenizer(run: ShardRun, config: PrepareConfig, split: SplitConfig, shards: Shards) -> Path:
    """Train a sentencepiece model on the first training documents in the shuffled order."""
    folder = run.workspace.folder
    below = 2**64  # all documents: a plan before the first run has no counts
    if run.counts:
        before = run.counts[-1]
        below = sample_bound(config.tokenizer.train_bytes, documents=before.documents_out, n_bytes=before.bytes_out)
    samples = shards
    if below < 2**64:
        samples = {name: folder / SAMPLE.name / f"{name}{SHARD_ENDING}" for name in shards}
        run.tasks(SAMPLE, [Task(SampleTask(split, below), (shards[name],), (samples[name],)) for name in shards])
    model = folder / TRAIN.name / "tokenizer.model"
    run.tasks(TRAIN, [Task(TrainTask(config.tokenizer, split), tuple(samples.values()), (model,))])
    return model


def _tokens_and_rows(run: ShardRun, name: str) -> tuple[Path, Path]:
    folder = run.workspace.folder / TOKENIZE.name
    return folder / f"{name}.tokens", folder / f"{name}.npy"


def _write_files(
    run: ShardRun, names: dict[str, list[str]], vocab_size: int, tokenized: tuple[Path, ...]
) -> dict[str, list[FinishedTask]]:
    """Write the files of all splits, which `names` lists, at once."""
    folder = run.workspace.folder / WRITE.name
    tasks = [
        Task(
            FileTask(split == "validation", number, len(names[split]), vocab_size),
            tokenized,
            tuple(folder / f"{name}{ending}" for ending in FILE_ENDINGS),
        )
        for split in names
        for number, name in enumerate(names[split])
    ]
    finished = iter(run.tasks(WRITE, tasks))
    return {split: [next(finished) for _ in names[split]] for split in names}


def _totals(finished: list[FinishedTask]) -> dict[str, dict[str, int]]:
    return {
        split: {key: sum(task.facts[split][key] for task in finished) for key in ("tokens", "documents")}
        for split in SPLITS
    }


def _describe_split(totals: dict[str, int], names: list[str], written: list[FinishedTask]) -> dict[str, Any]:
    counts = sum((read_array(finished.task.outputs[3]) for finished in written), start=np.zeros(1, dtype=np.int64))
    shards = [{"name": name, **finished.facts} for name, finished in zip(names, written, strict=True)]
    for key, total in totals.items():
        assert sum(shard[key] for shard in shards) == total, f"{key} of the files do not add up to {total}"
    return {**totals, "unigram_entropy_nats": entropy_nats(counts), "shards": shards}


def _describe_tokenizer(tokenizer: Tokenizer, published: dict[str, Path]) -> dict[str, Any]:
    return {
        "file": list(published)[-1],  # the value for data.tokenizer
        "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in published.items()},
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "end_of_document_id": tokenizer.end_of_document_id,
    }


def _published_names(sources: tuple[Path, ...]) -> list[str]:
    return ["encoder.json", "vocab.bpe"] if len(sources) == 2 else [f"tokenizer{sources[0].suffix}"]


def _check_splits(totals: dict[str, dict[str, int]], config: PrepareConfig) -> None:
    n_documents = sum(split["documents"] for split in totals.values())
    for name, split in totals.items():
        if not split["documents"]:
            raise ConfigError(
                f"output.validation_fraction = {config.output.validation_fraction} is invalid: of {n_documents:,} "
                f"documents it leaves none for {name}. Use another value or output.seed, or give more documents"
            )


def _check_files(names: list[str], written: list[FinishedTask], config: PrepareConfig) -> None:
    for name, finished in zip(names, written, strict=True):
        if not finished.facts["documents"]:
            raise ConfigError(
                f"output.shard_tokens = {config.output.shard_tokens:,} is invalid: it makes {len(names)} files, and by "
                f"chance {name} gets no document. Use a larger one, at least the length of some hundred documents"
            )
