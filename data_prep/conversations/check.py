"""Check the input of a recipe with conversations before any stage, and say how its files are read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.corpus import sum_of_facts
from data_prep.conversations.shapes import SHAPES, renamed, shape_of
from data_prep.inputs.config import InputConfig, kind_of
from data_prep.inputs.find import sample_lines
from data_prep.readers.remote_files import RemoteFile
from gpt.errors import ConfigError, escaped

_LOOKED_AT = 4  # files of JSON lines, one of which must have a known shape
_READABLE = ("json lines", "parquet")
_RANKINGS = ("ranking", "preference", "hh")


def check_conversations(
    files: Sequence[Path | RemoteFile], reading: InputConfig, conversations: ConversationsConfig
) -> None:
    """ConfigError: a file is neither JSON lines nor Parquet, or the first records have no shape for this kind."""
    for file in files:
        if kind_of(file.name, reading.endings) not in _READABLE:
            raise ConfigError(
                f"input.paths: {file} is invalid with [conversations]: must be JSON lines, a JSON list or Parquet"
            )
    local = [file for file in files if isinstance(file, Path)]
    lines = [file for file in local if kind_of(file.name, reading.endings) == "json lines"][:_LOOKED_AT]
    records = [record for file in lines for record in sample_lines(file, reading) if isinstance(record, dict)]
    if not records:
        return
    shapes = Counter(shape_of(renamed(record, conversations.fields)) for record in records)
    wanted = conversations.shape
    if not shapes.keys() & ({wanted} if wanted != "auto" else set(SHAPES)):
        fields = ", ".join(map(str, list(records[0])[:20])) or "nothing"
        raise ConfigError(
            escaped(
                f"conversations.shape = '{wanted}' is invalid: {lines[0]} has no such records. They have: {fields}. "
                f"Known shapes: {', '.join(SHAPES)}. conversations.fields gives other names to fields"
            )
        )
    if conversations.kind == "rankings" and not shapes.keys() & set(_RANKINGS):
        found = ", ".join(shape for shape in shapes if shape)
        raise ConfigError(
            f"conversations.kind = 'rankings' is invalid: the records of {lines[0]} have the shape '{found}', with one "
            "answer each. Use conversations.kind = 'demonstrations', or give rankings"
        )


def reading_lines(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many files and records were read by which shape, and which fields were not used."""
    files: Counter[str] = Counter()
    records: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    for about in facts:
        files.update(about["shape"].keys())
        records.update(about["shape"])
        unused.update(about["unused_fields"])
    found = [f"{n:,} records of {files[shape]:,} files by the shape '{shape}'" for shape, n in records.most_common()]
    lines = [f"conversations: read {', '.join(found)}"] if found else []
    if unused:
        names = ", ".join(f"{name} ({n:,})" for name, n in unused.most_common(12))
        more = f" and {len(unused) - 12:,} more" if len(unused) > 12 else ""
        lines.append(escaped(f"conversations: fields that are not used: {names}{more}"))
    return lines


def length_lines(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how much is learned, and the lengths that data.seq_len must hold."""
    if not facts:
        return []
    sums = sum_of_facts(facts)
    lines = []
    if sums["learned"]:
        share = sums["learned"] / max(1, sums["tokens"])
        lines.append(f"conversations: {sums['learned']:,} of {sums['tokens']:,} tokens are learned ({share:.0%})")
    if sums["pairs"]:
        lines.append(f"conversations: {sums['answers']:,} completions, {sums['pairs']:,} pairs of different quality")
    longest = f"conversations: the longest document has {sums['longest_document']:,} tokens"
    if sums["pairs"]:
        longest += f", the longest conversation {sums['longest_conversation']:,}. data.seq_len must hold a document"
    return [*lines, longest]
