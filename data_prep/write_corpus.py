"""Do the last steps of a recipe, from clean shards to the corpus folder: tokenizer, token ids, files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.corpus import (
    TokenizedConversations,
    companions_of,
    describe_chat,
    describe_side_file,
    tokenize_conversations,
    write_side_files,
)
from data_prep.conversations.tokens import STREAMS
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
from data_prep.labels.corpus import describe_labels, label_counts, label_streams, tokenize_labels
from data_prep.labels.tokens import STREAM as LABELS
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
    tokenized = _tokenize(run, config, division, model, sources, shards)
    run.workspace.check(sources)
    tokenizer = load_tokenizer(model)
    _check_splits(tokenized.totals, config)
    written = _write_files(run, config, tokenizer.vocab_size, tokenized)
    side_files = {}
    if config.conversations is not None and tokenized.chats is not None:
        side_files = write_side_files(run, config.conversations, tokenized.chats, SPLITS)
    run.workspace.no_more_tasks()
    for of_split in written.values():
        _check_files(of_split[""], config)
    tasks = [task for of_split in written.values() for of_stream in of_split.values() for task in of_stream.values()]
    run.workspace.check([finished.task.outputs[3] for finished in tasks])
    files = {path.name: path for finished in tasks for path in finished.task.outputs[:3]}
    files |= {path.name: path for path in side_files.values()}
    published = dict(zip(_published_names(sources), sources, strict=True))
    companions = {} if config.conversations is None else companions_of(config.conversations, model)
    splits = {split: _describe_split(tokenized.totals[split], split, written[split], config) for split in SPLITS}
    for split, path in side_files.items():
        splits[split]["rankings"] = describe_side_file(path)
    if config.labels is not None:
        for split, about in splits.items():
            about["labels"] = label_counts(tokenized.facts, config.labels, split)
    description = describe(
        splits,
        _describe_tokenizer(tokenizer, published, companions),
        recipe=_recipe(config, division),
        steps=[counts.as_dict() for counts in run.counts],
        versions=versions(_PACKAGES),
        more={**more, **_more(config, model)},
    )

    def publish_intact() -> None:
        run.workspace.check(list(files.values()))
        publish(config.output.corpus_folder, published | companions | files, description)

    run.workspace.run_once(publish_intact)
    return description


@dataclass(frozen=True)
class _Tokenized:
    """Totals of each split, and of each stream (the ids have the name "") the values and rows of every shard."""

    totals: dict[str, dict[str, int]]
    files: dict[str, tuple[Path, ...]]
    chats: TokenizedConversations | None = None
    facts: Sequence[Mapping[str, Any]] = ()  # of the tasks that wrote labelled texts


def _tokenize(
    run: ShardRun, config: PrepareConfig, split: SplitConfig, model: Path, sources: tuple[Path, ...], shards: Shards
) -> _Tokenized:
    """Turn texts, rendered conversations or labelled texts into token ids."""
    if config.conversations is not None:
        chats = tokenize_conversations(run, config.conversations, model, split, shards)
        return _Tokenized(_totals(chats.finished), {"": chats.ids, **chats.streams}, chats)
    if config.labels is not None:
        labelled = tokenize_labels(run, config.labels, sources, split, shards)
        facts = [finished.facts for finished in labelled.finished]
        return _Tokenized(_totals(labelled.finished), {"": labelled.ids, LABELS: labelled.labels}, facts=facts)
    # The stage loads the tokenizer from the last file alone: from a merges file it finds the vocabulary next to it.
    tasks = [Task(split, (path, *reversed(sources)), _tokens_and_rows(run, name)) for name, path in shards.items()]
    totals = _totals(run.tasks(TOKENIZE, tasks))
    return _Tokenized(totals, {"": tuple(path for task in tasks for path in task.outputs)})


def _recipe(config: PrepareConfig, division: SplitConfig) -> dict[str, Any]:
    """The recipe for corpus.json, with the division that was used."""
    recipe = plain(config)
    recipe["output"] = {**plain(division), "shard_tokens": config.output.shard_tokens}
    if config.classify.model is not None:
        recipe["classify"]["model_sha256"] = model_digest(config.classify.model)
    return dict(recipe)


def _more(config: PrepareConfig, model: Path) -> dict[str, Any]:
    if config.labels is not None:
        return {"labels": describe_labels(config.labels)}
    return {} if config.conversations is None else {"chat": describe_chat(config.conversations, model)}


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


def _streams(config: PrepareConfig, vocab_size: int) -> dict[str, int]:
    """The vocabulary of the ids, whose name is "", and of each stream."""
    if config.labels is not None:
        return {"": vocab_size, **label_streams(config.labels)}
    return {"": vocab_size, **({} if config.conversations is None else STREAMS[config.conversations.kind])}


def _prefix(split: str, stream: str) -> str:
    return f"{SPLITS[split]}_{stream}" if stream else SPLITS[split]


def _write_files(
    run: ShardRun, config: PrepareConfig, vocab_size: int, tokenized: _Tokenized
) -> dict[str, dict[str, dict[str, FinishedTask]]]:
    """Write the files of all splits and streams at once; return their tasks by split, stream and name."""
    folder = run.workspace.folder / WRITE.name
    tasks, places = [], []
    for split in SPLITS:
        n_files = -(-tokenized.totals[split]["tokens"] // config.output.shard_tokens)
        for stream, size in _streams(config, vocab_size).items():
            for number, name in enumerate(shard_names(_prefix(split, stream), n_files)):
                task = FileTask(split == "validation", number, n_files, size)
                outputs = tuple(folder / f"{name}{ending}" for ending in FILE_ENDINGS)
                tasks.append(Task(task, tokenized.files[stream], outputs))
                places.append((split, stream, name))
    written: dict[str, dict[str, dict[str, FinishedTask]]] = {split: {} for split in SPLITS}
    for (split, stream, name), finished in zip(places, run.tasks(WRITE, tasks), strict=True):
        written[split].setdefault(stream, {})[name] = finished
    return written


def _totals(finished: list[FinishedTask]) -> dict[str, dict[str, int]]:
    return {
        split: {key: sum(task.facts[split][key] for task in finished) for key in ("tokens", "documents")}
        for split in SPLITS
    }


def _describe_split(
    totals: dict[str, int], split: str, written: dict[str, dict[str, FinishedTask]], config: PrepareConfig
) -> dict[str, Any]:
    shards = {
        stream: [{"name": name, **finished.facts} for name, finished in tasks.items()]
        for stream, tasks in written.items()
    }
    for of_stream in shards.values():
        for key, total in totals.items():
            assert sum(shard[key] for shard in of_stream) == total, f"{key} of the files do not add up to {total}"
    counts = [read_array(finished.task.outputs[3]) for finished in written[""].values()]
    about = {**totals, "unigram_entropy_nats": entropy_nats(sum(counts, start=np.zeros(1, dtype=np.int64)))}
    streams = {
        stream: {"prefix": _prefix(split, stream), "vocab_size": size, "shards": shards[stream]}
        for stream, size in _streams(config, 0).items()
        if stream
    }
    return {**about, "shards": shards[""], **({"streams": streams} if streams else {})}


def _describe_tokenizer(
    tokenizer: Tokenizer, published: dict[str, Path], companions: dict[str, Path]
) -> dict[str, Any]:
    files = companions | published
    return {
        "file": list(published)[-1],  # the value for data.tokenizer
        "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
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
                f"documents it leaves none for {name}. Use another value or output.seed, give more documents, "
                "or name a field whose values differ with input.id_field: documents of one id go to one split"
            )


def _check_files(written: dict[str, FinishedTask], config: PrepareConfig) -> None:
    for name, finished in written.items():
        if not finished.facts["documents"]:
            raise ConfigError(
                f"output.shard_tokens = {config.output.shard_tokens:,} is invalid: it makes {len(written)} files, and "
                f"by chance {name} gets no document. Use a larger one, at least the length of some hundred documents"
            )
