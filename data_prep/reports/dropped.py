"""Show examples of the documents that a run dropped, with the beginning of their text."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.documents.shards import DamagedShardError, read_shard
from data_prep.documents.traces import Drop, read_trace
from data_prep.execution.shard_runs import Steps, read_steps
from data_prep.filters.moderation import STEP as MODERATION
from data_prep.labels.read import READ as READ_LABELS
from gpt.errors import ConfigError, did_you_mean

EACH = 3  # examples of a step and reason
_SHOWN = 160  # characters


@dataclass(frozen=True)
class DropExample:
    """A dropped document. `text`: its beginning, "" if it never was text or the shard before the step is removed.

    It is "" too for undesired content and labelled texts, unless exactly that step was asked for.
    """

    drop: Drop
    text: str


@dataclass(frozen=True)
class DroppedDocuments:
    """What the last run dropped: documents by step and reason, some examples of each, and the folders with all."""

    counts: dict[tuple[str, str], int]
    examples: list[DropExample]
    folders: list[Path]


def dropped_documents(work: Path, step: str = "", *, most_shards: int | None = None) -> DroppedDocuments:
    """Return what the last run in a work folder dropped at a step, or at every step. ConfigError: no such step.

    `most_shards`: look at the first shards of each stage only; then the counts are those of these shards.
    """
    about = read_steps(work)
    counts: Counter[tuple[str, str]] = Counter()
    examples: list[DropExample] = []
    folders: list[Path] = []
    try:
        for number in range(len(about.done)):
            found = _of_stage(work, about, number, step, counts, most_shards)
            if found:
                folders.append(work / about.done[number].stage)
            examples += found
    except DamagedShardError as error:
        raise ConfigError(f"{error}. Run `triaxial prepare` again") from None
    if step and not examples:
        known = list(dict.fromkeys(name for stage in about.done for name in _steps_in(work, stage.traces(work))))
        meant = did_you_mean(step, known) or (f"Steps that did: {', '.join(known)}" if known else "No step did")
        raise ConfigError(f"--dropped {step}: the last run dropped no document at such a step. {meant}")
    return DroppedDocuments(dict(counts), examples, folders)


def _of_stage(
    work: Path, about: Steps, number: int, step: str, counts: Counter[tuple[str, str]], most_shards: int | None
) -> list[DropExample]:
    """Count the drops of a stage, and return examples. Reads a shard only for the texts of examples."""
    stage, found = about.done[number], list[DropExample]()
    before = about.done[number - 1].shards(work) if number else [None] * len(stage.names)
    offensive = about.done[0].stage == READ_LABELS.name
    for trace, shard in list(zip(stage.traces(work), before, strict=True))[:most_shards]:
        wanted: dict[str, Drop] = {}
        for drop in read_trace(trace) if trace.exists() else ():
            if step in ("", drop.step):
                counts[drop.step, drop.reason] += 1
                if counts[drop.step, drop.reason] <= EACH:
                    wanted[drop.id] = drop
        shown = {
            name for name, drop in wanted.items() if step == drop.step or not (offensive or drop.step == MODERATION)
        }
        texts = _beginnings(shard, shown) if shard is not None and shown else {}
        found += [DropExample(drop, texts.get(name, "")) for name, drop in wanted.items()]
    return found


def _beginnings(shard: Path, ids: set[str]) -> dict[str, str]:
    if not shard.exists() or not shard.name.endswith(".jsonl.zst"):
        return {}  # output.keep_intermediate = false removed it, or the step before made pages
    return {d.id: " ".join(d.text[: 4 * _SHOWN].split())[:_SHOWN] for d in read_shard(shard) if d.id in ids}


def _steps_in(work: Path, traces: list[Path]) -> list[str]:
    return [drop.step for trace in traces if trace.exists() for drop in read_trace(trace)]
