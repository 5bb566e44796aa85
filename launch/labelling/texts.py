"""Read the texts to label: selections, scores, labels, or any JSON lines, CSV or Parquet with a "text"."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.moderation.label_files import read_records
from gpt.moderation.labels import text_id
from gpt.moderation.score_files import groups_of

COPIED = ("groups", "source", "pipeline", "weight")  # from the line of a text to the lines of its labels


@dataclass(frozen=True)
class TextToLabel:
    """A text, and the fields of its line that its labels repeat."""

    id: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextsToLabel:
    """The texts in the order of the files, each once; records that already have labels; lines left out by reason."""

    texts: tuple[TextToLabel, ...]
    labelled: tuple[dict[str, Any], ...]
    left_out: Counter[str]


def read_texts(paths: Sequence[Path]) -> TextsToLabel:
    """Read the files. The first line of an id counts.

    ConfigError: a file cannot be read, a line is no JSON object, or no line has a text.
    """
    texts: dict[str, TextToLabel] = {}
    labelled: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for record in _records(paths):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            left_out['no "text"'] += 1
            continue
        if not _is_unicode(text):
            left_out["not Unicode: a half of a surrogate pair"] += 1
            continue
        given = record.get("id")
        found = TextToLabel(
            str(given) if _is_id(given) else text_id(text),
            text,
            {key: record[key] for key in COPIED if record.get(key) is not None},
        )
        is_labelled = isinstance(record.get("labels"), dict) and isinstance(record.get("labeller"), str)
        if is_labelled:
            labelled.append({**record, "id": found.id})
        if found.id not in texts:
            texts[found.id] = found
        elif texts[found.id].text != text:
            left_out["another text has its id"] += 1
        elif not is_labelled:  # two labellers' lines of one text are no repetition
            left_out["repeated"] += 1
    if not texts:
        raise ConfigError(f'{paths[0]} has no text to label: give records with a "text", such as those of `select`.')
    return TextsToLabel(tuple(texts.values()), tuple(labelled), left_out)


def _records(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for place, record in read_records(path):
            groups = groups_of(record, where=f"{path}, {place}")
            yield {**record, "groups": groups or None}


def _is_id(value: Any) -> bool:
    """Whether an id is a text or a whole number, as all readers of labels and scores take it."""
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value) != ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
