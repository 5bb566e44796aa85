"""Choose the fields of JSON lines and Parquet files that hold the text and the id of a document."""

from collections.abc import Iterable, Sequence

from data_prep.documents.records import usable_id

_KNOWN_FIELDS = ("text", "content", "body", "document", "article", "story", "raw_content")


def choose_field(fields: dict[str, int]) -> str:
    """Return the field of the text: one with a usual name, or else the one with most characters."""
    return next((name for name in _KNOWN_FIELDS if fields.get(name)), next(iter(fields)))


def choose_id_field(records: Iterable[object]) -> str:
    """Return "id", or "" if all records that have an id have the same one: documents of one id go to one split."""
    given = [usable_id(record.get("id")) for record in records if isinstance(record, dict)]
    ids = [name for name in given if name]
    return "" if len(ids) > 1 and len(set(ids)) == 1 else "id"


def with_ids(texts: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns of text, and the one of the ids if a table has it."""
    return list(dict.fromkeys([*texts, *(name for name in columns if name == "id")]))
