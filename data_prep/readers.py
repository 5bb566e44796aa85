"""Finds and reads the input files, each kind by its ending; never judges what a text is worth."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.compressed import BROKEN, open_bytes, read_lines
from data_prep.documents import Document, content_id, whole_text
from data_prep.web_archives import Dropped, Page, read_web_archive
from gpt.errors import ConfigError, import_extra

ENDINGS = {
    ".warc": "web archive",
    ".warc.gz": "web archive",
    ".wet": "web archive",
    ".wet.gz": "web archive",
    ".jsonl": "json lines",
    ".jsonl.gz": "json lines",
    ".jsonl.zst": "json lines",
    ".parquet": "parquet",
    ".txt": "text",
    ".txt.gz": "text",
    ".txt.zst": "text",
}


@dataclass(frozen=True)
class InputConfig:
    """Section [input]: where the documents come from.

    `paths`: files, or patterns such as "crawl/**/*.warc.gz", relative to the current folder. `source = "python-docs"`
    instead takes the documentation pages of the running Python. `text_field` and `id_field` name the fields of JSON
    lines and the columns of Parquet files. `text_separator` cuts `.txt` files into documents (empty: a file is one).
    """

    paths: tuple[str, ...] = ()
    source: Literal["files", "python-docs"] = "files"
    text_field: str = "text"
    id_field: str = "id"
    text_separator: str = ""
    max_record_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.source == "files" and not self.paths:
            raise ConfigError('input.paths is empty; list files or patterns, or set input.source = "python-docs"')
        if self.source != "files" and self.paths:
            raise ConfigError(f'input.paths and input.source = "{self.source}" are both given; remove one of them')
        if self.max_record_bytes < 1:
            raise ConfigError(f"input.max_record_bytes = {self.max_record_bytes} must be at least 1")


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns name, each once, sorted. ConfigError: nothing found, unknown ending."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise ConfigError(f"input.paths: no file matches '{pattern}' (current folder: {Path.cwd()})")
        for match in matches:
            if match.is_dir():
                raise ConfigError(
                    f"input.paths: '{match}' is a folder; name its files, for example '{match}/*.warc.gz'"
                )
            kind_of(match)
            found.add(match.resolve())
    return sorted(found)


def kind_of(path: Path) -> str:
    """The kind of an input file by its ending, or ConfigError."""
    for ending, kind in ENDINGS.items():
        if path.name.endswith(ending):
            return kind
    raise ConfigError(f"input.paths: cannot tell what '{path}' is; known endings: {', '.join(ENDINGS)}")


def read_records(path: Path, config: InputConfig) -> Iterator[Page | Document | Dropped]:
    """Every record of an input file: a page, a text, or why it is neither. A cut-off file ends with `truncated`."""
    kind = kind_of(path)
    if kind == "web archive":
        yield from read_web_archive(path, max_record_bytes=config.max_record_bytes)
    elif kind == "parquet":
        yield from _read_parquet(path, config)
    else:
        try:
            with open_bytes(path) as stream:
                read = _read_json_lines if kind == "json lines" else _read_text
                yield from read(stream, config)
        except BROKEN:
            yield Dropped("truncated", 0)


def _read_json_lines(stream: Any, config: InputConfig) -> Iterator[Document | Dropped]:
    for line in read_lines(stream, max_bytes=config.max_record_bytes):
        if line is None:
            yield Dropped("too_large", config.max_record_bytes)
        elif line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):  # ValueError covers bad UTF-8 too
                values = None
            yield _from_fields(values, len(line), config)


def _from_fields(values: Any, n_bytes: int, config: InputConfig) -> Document | Dropped:
    if not isinstance(values, dict) or not isinstance(values.get(config.text_field), str):
        return Dropped("malformed", n_bytes)
    text = whole_text(values[config.text_field])
    given = values.get(config.id_field)
    named = isinstance(given, str | int) and given != ""
    metadata = {key: values[key] for key in ("url", "date") if isinstance(values.get(key), str)}
    metadata = {key: whole_text(value) for key, value in metadata.items()}
    return Document(whole_text(str(given)) if named else content_id("text", text.encode()), text, metadata)


def _read_text(stream: Any, config: InputConfig) -> Iterator[Document | Dropped]:
    separator = config.text_separator.encode()
    if not separator:
        yield _text_document(stream.read(config.max_record_bytes + 1), config)
        return
    rest = b""
    skipping = False  # inside a document that is already too long
    while block := stream.read(1 << 16):
        *pieces, rest = (rest + block).split(separator)
        for piece in pieces:
            if not skipping and piece.strip():
                yield _text_document(piece, config)
            skipping = False
        if len(rest) > config.max_record_bytes:
            if not skipping:
                yield _text_document(rest, config)
            skipping, rest = True, rest[-len(separator) + 1 :] if len(separator) > 1 else b""
    if rest.strip() and not skipping:
        yield _text_document(rest, config)


def _text_document(data: bytes, config: InputConfig) -> Document | Dropped:
    if len(data) > config.max_record_bytes:
        return Dropped("too_large", len(data))
    text = data.decode("utf-8-sig", "replace")
    return Document(content_id("text", text.encode()), text)


def _read_parquet(path: Path, config: InputConfig) -> Iterator[Document | Dropped]:
    parquet = import_extra("pyarrow.parquet", extra="data")
    arrow = import_extra("pyarrow", extra="data")
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    with file:
        names = file.schema_arrow.names
        if config.text_field not in names:
            raise ConfigError(
                f"{path} has no column '{config.text_field}' (it has: {', '.join(names)}); set input.text_field"
            )
        wanted = [name for name in dict.fromkeys((config.text_field, config.id_field, "url", "date")) if name in names]
        batches = file.iter_batches(batch_size=256, columns=wanted)
        while True:
            try:
                batch = next(batches, None)
            except (arrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # the disk, not the data
                    raise
                yield Dropped("damaged", 0)
                return
            if batch is None:
                return
            for values in batch.to_pylist():
                text = values[config.text_field]
                n_bytes = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
                large = n_bytes > config.max_record_bytes
                yield Dropped("too_large", n_bytes) if large else _from_fields(values, n_bytes, config)
