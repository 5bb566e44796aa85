"""The step of labelled texts that differs from that of texts: token ids with labels, and the counts by category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


def check_label_files(files: Sequence[Path | RemoteFile], reading: InputConfig) -> None:
    """ConfigError: a file is neither JSON lines nor Parquet."""
    for file in files:
        if kind_of(file.name, reading.endings) not in ("json lines", "parquet"):
            raise ConfigError(
                f"input.paths: {file} is invalid with [labels]: must be JSON lines or Parquet. `triaxial moderate "
                "labels` makes JSON lines of other files"
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
    return {"taxonomy": config.version, "digest": config.digest, "categories": list(config.categories)}
