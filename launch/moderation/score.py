"""Score a stream of texts chunk by chunk into a score file."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError, MachineFault, file_error
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.score_files import ScoreFile
from launch.moderation.score_inputs import ScoreInputs, SetAside, TextToScore, texts_to_score

CHUNK_TEXTS, CHUNK_BYTES = 2048, 4 << 20
DIGITS = 9  # of a score: more than fp32 has


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored, and what goes into the lines. Work continues if request and model are equal."""

    inputs: ScoreInputs
    output: Path
    with_text: bool = True

    def identity(self, classifier: OpenedClassifier) -> dict[str, Any]:
        """JSON that decides every line of the output."""
        return {
            "model": classifier.version,
            "window": classifier.window,
            "inputs": self.inputs.identity(),
            "text_field": self.inputs.config.text_field,
            "id_field": self.inputs.config.id_field,
            "group_fields": list(self.inputs.group_fields),
            "with_text": self.with_text,
        }


def score_inputs(
    classifier: OpenedClassifier,
    request: ScoreRequest,
    *,
    advance: Callable[[int], None] = lambda n: None,
    chunk_texts: int = CHUNK_TEXTS,
) -> dict[str, Any]:
    """Score all texts and write the file; return its summary. Every rank must call it; the main rank writes.

    `advance` gets the number of records that are done. ConfigError: an input cannot be read, or another command writes
    the output.
    """
    file = ScoreFile(request.output, request.identity(classifier))
    with ExitStack() as stack:
        _on_main_rank(classifier, lambda: stack.enter_context(file.opened()))
        return _score_into(file, classifier, request, advance, chunk_texts)


def _on_main_rank(classifier: OpenedClassifier, write: Callable[[], None]) -> None:
    """Do `write` on the main rank. Every rank must call it. ConfigError, on every rank: it failed.

    The other ranks would wait in the next collective for a main rank that has ended.
    """
    error: ConfigError | None = None
    try:
        if classifier.run.is_main:
            write()
    except ConfigError as found:
        error = found
    except OSError as found:
        where = found.filename2 or found.filename or "the file of --output"
        reason = (found.strerror or "").lower()
        error = file_error(found, f"{where} cannot be written: {reason}. Make room, or name another file with --output")
    by_rank = classifier.run.engine.all_gather_objects([] if error is None else [(str(error), error.exit_status)])
    if error is not None:
        raise error
    for text, status in (one for of_rank in by_rank for one in of_rank):
        raise (MachineFault if status == MachineFault.exit_status else ConfigError)(text)


def _score_into(
    file: ScoreFile,
    classifier: OpenedClassifier,
    request: ScoreRequest,
    advance: Callable[[int], None],
    chunk_texts: int,
) -> dict[str, Any]:
    done = file.progress.records  # read on every rank before the main rank writes: the first chunk is collective
    if classifier.run.is_main:
        advance(done)
    records = texts_to_score(request.inputs, classifier.run.tokenizer, classifier.run.tokenizer_file)
    for chunk in chunks(islice(records, done, None), chunk_texts):
        texts = [one for one in chunk if isinstance(one, TextToScore)]
        aside = [one for one in chunk if isinstance(one, SetAside)]
        lines, in_windows = _lines(classifier, texts, with_text=request.with_text)
        _on_main_rank(classifier, partial(file.add, lines, aside, in_windows=in_windows))
        if classifier.run.is_main:
            advance(len(chunk))
    facts = _summary(classifier, request, file)
    _on_main_rank(classifier, lambda: file.finish(facts, classifier.categories))
    return facts


def chunks(
    records: Iterable[TextToScore | SetAside], chunk_texts: int = CHUNK_TEXTS
) -> Iterator[list[TextToScore | SetAside]]:
    """Lists of at most `chunk_texts` records and about CHUNK_BYTES characters, in whose texts batches are sorted."""
    chunk: list[TextToScore | SetAside] = []
    size = 0
    for one in records:
        chunk.append(one)
        size += len(one.text) if isinstance(one, TextToScore) else 0
        if len(chunk) == chunk_texts or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _lines(classifier: OpenedClassifier, texts: list[TextToScore], *, with_text: bool) -> tuple[list[bytes], int]:
    """The lines of some texts, and how many of them needed several windows. Collective."""
    new = iter(classifier.encoded([one.text for one in texts if one.tokens is None]))
    tokens = [next(new) if one.tokens is None else one.tokens for one in texts]
    windows = classifier.n_windows(tokens)
    scores = classifier.scores_of(tokens)
    lines = []
    for one, row, n_windows in zip(texts, scores.tolist(), windows, strict=True):
        found = {name: float(f"{p:.{DIGITS}g}") for name, p in zip(classifier.categories, row, strict=True)}
        text = {"text": one.text} if with_text else {}
        line = {"id": one.id, **text, "scores": found, "windows": n_windows, "groups": dict(one.groups)}
        lines.append(json.dumps({**line, "source": one.source}, ensure_ascii=False).encode() + b"\n")
    return lines, int(np.sum(np.array(windows, dtype=np.int64) > 1))


def _summary(classifier: OpenedClassifier, request: ScoreRequest, file: ScoreFile) -> dict[str, Any]:
    return {
        "model": classifier.version,
        "run": str(classifier.run.run_directory),
        "checkpoint": str(classifier.run.checkpoint.path),
        "taxonomy": classifier.taxonomy.label,
        "taxonomy_digest": classifier.taxonomy.digest,
        "taxonomy_content": classifier.taxonomy.values(),
        "categories": list(classifier.categories),
        "calibrated": bool(classifier.decisions.calibrators),
        "parents": bool(classifier.decisions.parents),
        "window": classifier.window,
        "texts": file.progress.texts,
        "texts_in_windows": file.progress.in_windows,
        "set_aside": dict(sorted(file.progress.reasons.items())),
        "inputs": request.inputs.names,
        "output": str(request.output),
    }
