"""The step of labelled texts that differs from that of texts: token ids with labels, and the counts by category."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from data_prep.corpus.split import SplitConfig
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import FinishedTask, Task
from data_prep.inputs.config import InputConfig, kind_of
from data_prep.labels.config import LabelsConfig
from data_prep.labels.tokens import STREAM, TOKENS, LabelTokensTask
from data_prep.readers.remote_files import RemoteFile
from gpt.errors import ConfigError
from gpt.token_files.label_states import label_values


@dataclass(frozen=True)
class TokenizedLabels:
    """The tasks that wrote the ids and labels of each shard: (ids, rows) and (labels, rows) of every shard in turn."""

    finished: list[FinishedTask]
    ids: tuple[Path, ...]
    labels: tuple[Path, ...]


_READER = "`triaxial moderate labels FILE --taxonomy FILE --output FILE.jsonl`"


def check_label_paths(paths: Sequence[str], reading: InputConfig) -> None:
    """ConfigError: a path is a table of text, which `triaxial prepare` does not read."""
    for path in paths:
        ending = PurePath(path.removesuffix(".gz")).suffix
        if ending in (".csv", ".tsv") and ending not in reading.endings:
            raise ConfigError(f"input.paths: '{path}' is invalid with [labels]. Make JSON lines of it with {_READER}")


@contextmanager
def naming_the_reader() -> Iterator[None]:
    """Add to an error about the texts of the input which command reads and counts any labelled texts."""
    try:
        yield
    except ConfigError as error:
        if type(error) is not ConfigError:  # the machine is at fault
            raise
        raise ConfigError(
            f"{error}. With [labels], input.paths holds labelled texts: {_READER} reads any form"
        ) from error


def check_label_files(files: Sequence[Path | RemoteFile], reading: InputConfig) -> None:
    """ConfigError: a file is neither JSON lines nor Parquet."""
    for file in files:
        if kind_of(file.name, reading.endings) not in ("json lines", "parquet"):
            raise ConfigError(
                f"input.paths: {file} is invalid with [labels]: must be JSON lines or Parquet. Make JSON lines "
                f"of it with {_READER}"
            )


def label_streams(config: LabelsConfig) -> dict[str, int]:
    """The streams of the corpus, with the number of values of each."""
    return {STREAM: label_values(len(config.categories))}


def tokenize_labels(
    run: ShardRun, config: LabelsConfig, sources: Sequence[Path], split: SplitConfig, shards: Shards
) -> TokenizedLabels:
    """Write the ids of labelled texts and their labels in the order of the corpus, a task a shard.

    ConfigError: no category has positive and negative labels in the training split.
    """
    folder = run.workspace.folder / TOKENS.name
    task = LabelTokensTask(split, len(config.categories), config.max_tokens)
    outputs = {name: tuple(folder / f"{name}{ending}" for ending in (".tokens", ".npy", ".labels")) for name in shards}
    tasks = [Task(task, (path, *reversed(sources)), outputs[name]) for name, path in shards.items()]
    finished = run.tasks(TOKENS, tasks)
    made = list(outputs.values())
    tokenized = TokenizedLabels(
        finished,
        tuple(path for files in made for path in files[:2]),
        tuple(path for files in made for path in (files[2], files[1])),
    )
    for line in label_lines([one.facts for one in finished], config):
        run.workspace.say(line)
    return tokenized


def label_counts(facts: Sequence[Mapping[str, Any]], config: LabelsConfig, split: str) -> dict[str, dict[str, int]]:
    """The positive and negative labels of each category in a split, summed over its tasks."""
    return {
        name: {kind: sum(about[split][kind][i] for about in facts) for kind in ("positive", "negative")}
        for i, name in enumerate(config.categories)
    }


def label_lines(facts: Sequence[Mapping[str, Any]], config: LabelsConfig) -> list[str]:
    """Say how many texts were cut, and which categories have one class only. ConfigError: all have."""
    counts = label_counts(facts, config, "training")
    poor = [name for name, of_kind in counts.items() if not all(of_kind.values())]
    if len(poor) == len(counts):
        raise ConfigError(
            f"labels.taxonomy = '{config.taxonomy}' is invalid for these texts: in the training split no category has "
            "both positive and negative labels, so a classifier learns nothing. Give texts of both classes"
        )
    lines = []
    if poor:
        lines.append(f"labels: {', '.join(poor)}: not both positive and negative labels in the training split")
    cut, longest = sum(about["cut"] for about in facts), max(about["longest"] for about in facts)
    if cut:
        lines.append(f"labels: {cut:,} texts are longer than labels.max_tokens = {config.max_tokens}, and are cut")
    lines.append(f"labels: the longest text has {longest:,} tokens. data.seq_len must hold each text with its labels")
    return lines


def describe_labels(config: LabelsConfig) -> dict[str, Any]:
    """The taxonomy, for corpus.json: a run compares it with its own."""
    return {
        "taxonomy": config.version,
        "digest": config.digest,
        "categories": list(config.categories),
        "parents": {name: parent for name, parent in config.categories.items() if parent},
        "severities": config.severities,
    }
