"""Read and write files of labelled texts: JSON lines, CSV and Parquet. No torch."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt.errors import ConfigError, file_error, import_extra
from gpt.files.atomic import open_replacement
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular
from gpt.moderation.label_records import LabelMap, labelled_text
from gpt.moderation.labels import LabelledText
from gpt.moderation.taxonomy import Taxonomy

_MAX_LINE = 1 << 24  # bytes
_NAMES = LabelMap()
_ENDINGS = "must end with .jsonl, .json, .csv, .tsv or .parquet, or .gz after one of the first four"


@dataclass
class LabelCounts:
    """Counts of the records read so far."""

    lines: int = 0
    without_text: int = 0  # left out
    without_labels: int = 0


def read_labelled(
    path: Path, taxonomy: Taxonomy, *, names: LabelMap = _NAMES, counts: LabelCounts | None = None
) -> Iterator[LabelledText]:
    """Yield the labelled texts of a file, by its ending. Records with a null or blank text are counted, and left out.

    Forms: ours, and files that have the categories' ids as fields, such as OpenAI's samples-1680; `names` maps others.
    ConfigError: the file is missing, damaged or not UTF-8, or a record breaks a rule of `labelled_text`; names the
    line. No error quotes a text.
    """
    counts = LabelCounts() if counts is None else counts
    for number, values in read_records(path):
        counts.lines += 1
        found = labelled_text(values, taxonomy, names, where=f"{path}, {number}")
        if found is None:
            counts.without_text += 1
            continue
        counts.without_labels += not found.labels
        yield found


def write_labelled(path: Path, texts: Iterable[LabelledText], taxonomy: Taxonomy) -> int:
    """Write JSON lines, packed if the name ends with .gz; return how many. The file appears whole or not at all."""
    n = 0
    with open_replacement(path) as raw:
        # Without name and time, the same texts give the same bytes.
        file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for one in texts:
            n += 1
            file.write(json.dumps(as_line(one, taxonomy), ensure_ascii=False).encode() + b"\n")
        if file is not raw:
            file.close()
    return n


def as_line(one: LabelledText, taxonomy: Taxonomy) -> dict[str, Any]:
    """The object of a text's line in our form, without what is empty. Labels have the taxonomy's order."""
    labels = {name: int(one.labels[name]) for name in taxonomy.ids if name in one.labels}
    values: dict[str, Any] = {"id": one.id, "text": one.text, "labels": labels}
    more = {"severity": dict(one.severity), "labeller": one.labeller, "groups": dict(one.groups), "source": one.source}
    return values | {key: value for key, value in more.items() if value} | {"taxonomy": taxonomy.label}


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (its position, such as "line 3"; the fields) of each record of JSON lines, CSV or Parquet, by the ending.

    Values of CSV are texts. ConfigError: the file is missing, damaged or not UTF-8, or a line is no object.
    """
    name = path.name.removesuffix(".gz")
    ending = Path(name).suffix
    if ending == ".parquet" and name == path.name:
        yield from _parquet(path)
        return
    if ending not in (".jsonl", ".json", ".csv", ".tsv"):
        raise ConfigError(f"{path} is invalid: the name {_ENDINGS}")
    try:
        with open_regular(path) as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
            if ending in (".jsonl", ".json"):
                yield from _json_lines(path, file)
            else:
                yield from _csv(path, file, "\t" if ending == ".tsv" else ",")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path} is damaged: it cannot be unpacked ({error}). Copy it again") from None
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = decode_json(line)
        except ValueError:
            raise ConfigError(f"{where} is no JSON. Each line must be one object") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{where} is invalid: must be a JSON object")
        yield f"line {number}", values


def _csv(path: Path, file: BinaryIO, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    last = 0  # csv counts the lines of a faulty row differently

    def lines() -> Iterator[str]:
        nonlocal last
        for last, line in _lines(path, file):  # noqa: B007
            yield line

    rows = csv.DictReader(lines(), delimiter=delimiter, strict=True)
    try:
        names = rows.fieldnames or ()
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise ConfigError(f"{path} has two columns with the name '{twice[:40]}'. Rename one")
        for values in rows:
            if None in values or None in values.values():  # more or fewer cells than names
                raise ConfigError(
                    f"{path}, line {last} has another number of cells than the first line, which names them"
                )
            yield f"line {last}", dict(values)
    except csv.Error as error:
        raise ConfigError(f"{path}, line {last} is no CSV: {error}. Mend it, or write JSON lines") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise ConfigError(f"{path}, line {number} has more than {_MAX_LINE:,} bytes, which is too long")
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number} is not UTF-8. Write the file as UTF-8") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet, arrow = (import_extra(name, extra="data") for name in ("pyarrow.parquet", "pyarrow"))
    try:
        with closing(open_regular(path)) as raw, parquet.ParquetFile(io.BytesIO(raw.read())) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield f"row {number}", values
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or 'no Parquet file').lower()}") from None
    except (arrow.ArrowException, ValueError) as error:
        raise ConfigError(f"{path} is no Parquet file, or damaged ({type(error).__name__}). Copy it again") from None
