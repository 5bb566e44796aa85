"""Read the examples of evaluation sets from local files; an unreadable record is an error, never skipped."""

import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.documents.shards import whole_text
from data_prep.inputs.find import absolute
from data_prep.readers.compressed import read_bytes, read_lines
from data_prep.readers.unpackers import Broken
from gpt.errors import ConfigError, file_error, import_extra
from gpt.files.json_text import decode_json

_MAX_RECORD_BYTES = 256 << 20
_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".arrow", ".txt", ".txt.gz", ".txt.zst")


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set: the development and test files of a task."""

    name: str
    """Name of the set in reports."""
    paths: tuple[str, ...]
    """Files or patterns: JSON lines, a JSON list, Parquet, `.arrow` files of Hugging Face's cache, or `.txt`."""
    fields: tuple[str, ...] = ()
    """Fields whose texts, joined by line ends, are an example. Dotted names select nested fields. Empty: all texts of
    the record except for the id, in order."""
    id_field: str = "id"
    """Field with the example's id."""
    text_separator: str = ""
    """Cuts `.txt` files into examples. Empty: one example a file."""
    synthetic: bool = False
    """Remove the minimum N of the overlap analysis, as the paper does for synthetic tasks."""

    def __post_init__(self) -> None:
        if not self.name or not self.paths:
            raise ConfigError(f"evaluation set '{self.name}': give both name and paths")


@dataclass(frozen=True)
class Example:
    """One example: its index in its set, over all files, and its record's id, or "" if there is none."""

    index: int
    id: str
    text: str


def find_set_files(sets: Sequence[EvaluationSet], *, where: str) -> list[tuple[Path, ...]]:
    """Find the files of each set, sorted. `where` names the setting in errors.

    ConfigError: nothing found, unknown ending, or two sets of one name.
    """
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two sets are named '{name}'. Give each a name of its own")
    return [tuple(sorted({path for p in s.paths for path in _matches(p, f"{where} '{s.name}'")})) for s in sets]


def ending_of(path: Path) -> str:
    """Return the ending by which a set's file is read."""
    return next(ending for ending in _ENDINGS if path.name.endswith(ending))


def check_sets(sets: Sequence[EvaluationSet], *, where: str) -> None:
    """Find the files of each set and read the first example of each, hours before the step that needs them all.

    ConfigError: as `find_set_files` and `read_examples`, or a set has no example.
    """
    for one, paths in zip(sets, find_set_files(sets, where=where), strict=True):
        if not sum(1 for path in paths for _ in itertools.islice(read_examples(one, [path]), 1)):
            raise ConfigError(f"{where} '{one.name}': no example in {', '.join(map(str, paths))}")


def _matches(pattern: str, where: str) -> list[Path]:
    expanded = Path(pattern).expanduser()
    matches = [expanded] if expanded.exists() else [Path(p) for p in glob.glob(str(expanded), recursive=True)]
    if not matches:
        raise ConfigError(f"{where}: no file matches '{pattern}' (current folder: {Path.cwd()})")
    for path in matches:
        if path.is_dir() or not path.name.endswith(_ENDINGS):
            raise ConfigError(
                f"{where}: '{path}' is invalid: the ending is unknown. Use files that end in {', '.join(_ENDINGS)}"
            )
    return [absolute(path) for path in matches]


def read_examples(about: EvaluationSet, paths: Sequence[Path]) -> Iterator[Example]:
    """Yield every example of a set, file by file. ConfigError: a record cannot be read; it names file and record."""
    index = 0
    for path in paths:
        try:
            for id_, text in _read_file(about, path):
                yield Example(index, id_, whole_text(text))
                index += 1
        except Broken as error:
            raise ConfigError(f"evaluation set '{about.name}': {path} is damaged or cut off: {error}") from None


def _read_file(about: EvaluationSet, path: Path) -> Iterator[tuple[str, str]]:
    if ".txt" in path.suffixes:
        text = read_bytes(path).decode("utf-8-sig", "replace")
        pieces = text.split(about.text_separator) if about.text_separator else [text]
        yield from (("", piece) for piece in pieces if piece.strip())
        return
    for number, record in enumerate(_records(about, path)):
        where = f"evaluation set '{about.name}': {path}, record {number + 1}"
        if not isinstance(record, dict):
            raise ConfigError(f"{where} is not a JSON object")
        identity = record.get(about.id_field)
        yield ("" if identity is None else str(identity)), "\n".join(_texts(about, record, where))


def _records(about: EvaluationSet, path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        open_file = partial(import_extra("pyarrow.parquet", extra="data").ParquetFile, pre_buffer=False)
        yield from _arrow_rows(path, open_file)  # block by block, not a whole row group
    elif path.suffix == ".arrow":
        yield from _arrow_rows(path, import_extra("pyarrow", extra="data").ipc.open_stream)
    else:
        lines = [read_bytes(path)] if path.suffix == ".json" else read_lines(path, max_bytes=_MAX_RECORD_BYTES)
        for number, line in enumerate(lines):
            try:
                if line is None or line.strip():
                    values = decode_json(line or b"")
                    yield from values if path.suffix == ".json" and isinstance(values, list) else [values]
            except ValueError as error:
                raise ConfigError(
                    f"evaluation set '{about.name}': {path}, line {number + 1} is not JSON: {error}"
                ) from None


def _arrow_rows(path: Path, open_file: Any) -> Iterator[Any]:
    arrow = import_extra("pyarrow", extra="data")
    try:
        with open_file(str(path)) as file:
            batches = file if path.suffix == ".arrow" else file.iter_batches(batch_size=256)
            for batch in batches:
                yield from batch.to_pylist()
    except OSError as error:
        raise file_error(error, f"{path} is not readable: {str(error).splitlines()[0]}") from None
    except arrow.ArrowException as error:
        raise ConfigError(f"{path} is not readable: {str(error).splitlines()[0]}") from None


def _texts(about: EvaluationSet, record: dict[str, Any], where: str) -> list[str]:
    if not about.fields:
        return [text for key, value in record.items() if key != about.id_field for text in _strings(value)]
    found = [list(_nested(record, field.split("."))) for field in about.fields]
    if not any(found):
        raise ConfigError(f"{where} has none of the fields {', '.join(about.fields)} (it has: {', '.join(record)})")
    # A named field may hold a number, such as a year or the result of a sum.
    return [text for values in found for value in values for text in _strings(value, numbers=True)]


def _nested(value: Any, names: list[str]) -> Iterator[Any]:
    """Yield the values that a dotted name selects; in a list, it selects in each element."""
    if isinstance(value, list):
        for item in value:
            yield from _nested(item, names)
    elif not names:
        if value is not None:
            yield value
    elif isinstance(value, dict) and names[0] in value:
        yield from _nested(value[names[0]], names[1:])


def _strings(value: Any, *, numbers: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item, numbers=numbers)
    elif numbers and isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
