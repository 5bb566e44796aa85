"""Follow a source from `triaxial prepare` to the steps of a run that read it: a file, a URL or the id of a document."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.data.readings import positions_reading
from gpt.errors import ConfigError
from launch.config.recipe import build, without_none
from launch.runs.audited import AuditedRun

if TYPE_CHECKING:
    from data_prep.reports.explain import Fate, Progress


@dataclass(frozen=True)
class Reading:
    """One sequence that holds tokens of a document. Steps count from 1, as in metrics.jsonl; epochs from 0."""

    step: int
    position: int  # in the order of the data
    epoch: int
    window: int
    is_past: bool  # a checkpoint holds weights that have seen it


@dataclass(frozen=True)
class TracedDocument:
    """A document of a corpus, and every sequence of the run that reads it, in order."""

    corpus: str
    document: int  # its number in the token files
    id: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Trail:
    """The way of a source through the preparation of one corpus, and its documents in the run."""

    folder: Path  # of the corpus
    fates: tuple["Fate", ...]
    documents: tuple[TracedDocument, ...]


Watch = Callable[[str], Callable[[int, int], object]]  # starts to show named work; the result takes done and total


def _unwatched(title: str) -> Callable[[int, int], object]:
    return lambda done, total: None


def follow(audited: AuditedRun, source: str, *, work: Path | None, watch: Watch = _unwatched) -> list[Trail]:
    """The trail of a file, URL or document id in each corpus of a run that holds it, or that dropped it.

    `work`: the work folder of `triaxial prepare`; `work` in each corpus's folder if None. ConfigError: no corpus of the
    run knows the source, or none has its work folder.
    """
    trails, reasons = [], []
    for folder, names in _corpora(audited).items():
        try:
            trails.append(_follow_in(audited, folder, names, source, work=work or folder / "work", watch=watch))
        except ConfigError as error:
            reasons.append(str(error))
    if not trails:
        raise ConfigError("; ".join(reasons))
    return trails


def _corpora(audited: AuditedRun) -> dict[Path, list[tuple[str, str]]]:
    """By corpus folder: the names of its corpora in the run, and the split of each."""
    found: dict[Path, list[tuple[str, str]]] = {}
    for files in audited.data.files:
        found.setdefault(files.tokens.prefix.parent, []).append((files.name, files.tokens.prefix.name))
    return found


def _follow_in(
    audited: AuditedRun, folder: Path, names: list[tuple[str, str]], source: str, *, work: Path, watch: Watch
) -> Trail:
    from data_prep.corpus.corpus import read_corpus
    from data_prep.reports.origins import numbers_of

    fates = _fates(source, work, read_corpus(folder), watch(f"following {source} through {work}"))
    ids = {document.id for fate in fates for document in fate.kept}
    documents = [
        TracedDocument(name, number, document_id, tuple(_readings(audited, name, number)))
        for name, split in names
        for number, document_id in (
            numbers_of(folder, work, split=split, ids=ids, progress=watch(f"finding its number in {name}"))
            if ids
            else {}
        ).items()
    ]
    return Trail(folder, tuple(fates), tuple(documents))


def _fates(source: str, work: Path, description: dict[str, Any], progress: "Progress") -> list["Fate"]:
    from data_prep.inputs.config import InputConfig
    from data_prep.reports.explain import explain, explain_file, explain_url

    if Path(source).is_file():
        given = without_none(description["recipe"]["input"])
        return explain_file(work, Path(source), build(InputConfig, given, where="input"), progress=progress)
    find = explain_url if source.startswith(("http://", "https://")) else explain
    return find(work, source, progress)


def _readings(audited: AuditedRun, corpus: str, document: int) -> Iterator[Reading]:
    ramp, seq_len = audited.config.batch.ramp, audited.config.data.seq_len
    n_samples = audited.samples(audited.config.train.steps(ramp)).stop
    n_positions = audited.skipped.position(n_samples - 1) + 1
    for position in positions_reading(audited.data, corpus, document, n_positions=n_positions):
        sample = audited.skipped.sample_at(position)
        if sample is not None:
            place, step = audited.data.locate(position), ramp.steps_to((sample + 1) * seq_len)
            is_past = audited.saved_step is not None and step <= audited.saved_step
            yield Reading(step, position, place.epoch, place.window, is_past)
