"""Find the input files and read their records, each kind of file by its ending."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.documents.records import Dropped, Origin, Page, Unread, decode_utf8, from_fields, usable_id
from data_prep.documents.shards import Document, content_id
from data_prep.readers.compressed import PACKINGS, WINDOW_BYTES, Gap, StreamPart, salvaged_blocks, split_stream
from data_prep.readers.input_lists import Answers, ask_all
from data_prep.readers.parquet_files import check_columns, read_parquet
from data_prep.readers.remote_files import STUB_ENDING, RemoteFile, is_url, write_stub
from data_prep.readers.unpackers import Broken, Packed, reader_faults
from data_prep.readers.web_archives import read_web_archive
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

# Web archives are packed record by record; only gzip files are made that way, so bzip2, xz and zstandard are left out.
ENDINGS = {
    **{f"{name}{packing}": "web archive" for name in (".warc", ".wet", ".arc") for packing in ("", ".gz")},
    **{f".jsonl{packing}": "json lines" for packing in PACKINGS},
    **{f".json{packing}": "json lines" for packing in PACKINGS if packing},  # the names in dolma
    **{f".txt{packing}": "text" for packing in PACKINGS},
    ".parquet": "parquet",
}
# A line of 16 MiB can hold millions of JSON values, and reading each of them takes about 100 bytes of memory.
_LONG_LINE, _MAX_VALUES = 1 << 20, 1_500_000
# A multiple of max_record_bytes: after this much of one line or text (some seconds), the rest of the file is dropped.
_GIVE_UP = {".bz2": 16, ".xz": 16}
_GIVE_UP_FAST = 128


@dataclass(frozen=True)
class InputConfig:
    """The [input] section of a recipe: where the documents come from."""

    paths: tuple[str, ...] = ()
    """Files or patterns such as "crawl/**/*.warc.gz", relative to the current folder, or URLs that fsspec can read."""
    path_lists: tuple[str, ...] = ()
    """Files with one such path a line, such as Common Crawl's warc.paths.gz."""
    path_base: str = ""
    """Put before each line of `path_lists`, such as "https://data.commoncrawl.org/"."""
    source: Literal["files", "python-docs"] = "files"
    """`python-docs` reads the documentation pages of the running Python instead of files."""
    text_field: str = "text"
    """Field of JSON lines, or column of Parquet files, with the text."""
    id_field: str = "id"
    """Field or column with the document's id."""
    text_separator: str = ""
    """Cuts `.txt` files into documents. Empty: one document a file."""
    max_record_bytes: int = 16 << 20
    """Bytes of a record, also after unpacking. Longer ones are dropped."""
    max_download_bytes: int = 64 << 30
    """Bytes of a remote file. Longer ones are refused."""
    max_window_bytes: int = WINDOW_BYTES
    """Bytes of memory for unpacking a zstandard or xz file. Files made by `zstd --long=31` may need 2147483648."""
    check_digests: bool = True
    """Drop WARC records whose content has another digest than their header gives."""

    def __post_init__(self) -> None:
        named = self.paths or self.path_lists
        if self.source == "files" and not named:
            raise ConfigError('input.paths is empty; list files or patterns, or set input.source = "python-docs"')
        if self.source != "files" and named:
            raise ConfigError(f'input.paths and input.source = "{self.source}" are both given; remove one of them')
        if self.path_base and not self.path_lists:
            raise ConfigError(f'input.path_base = "{self.path_base}" is invalid without input.path_lists. Remove it')
        if self.max_record_bytes < 1:
            raise ConfigError(f"input.max_record_bytes = {self.max_record_bytes} is invalid: must be at least 1")


def find_inputs(patterns: Sequence[str], *, known: Answers | None = None) -> list[Path | RemoteFile]:
    """Return the files that the patterns match, each once, sorted. ConfigError: no match, or an unknown ending.

    `known`: earlier answers, for which no server is asked.
    """
    found: set[Path] = set()
    urls = [pattern for pattern in patterns if is_url(pattern)]
    remote = {file.url: file for file in ask_all(urls, known or {}) if kind_of(file.name)}
    for pattern in patterns:
        if is_url(pattern):
            continue
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise ConfigError(f"input.paths: no file matches '{pattern}' (current folder: {Path.cwd()})")
        for match in matches:
            if match.is_dir():
                raise ConfigError(
                    f"input.paths: '{match}' is a folder. Name its files, for example '{match}/*.warc.gz'"
                )
            if not match.is_file():
                raise ConfigError(f"input.paths: '{match}' is not a regular file. Copy its content to a file")
            kind_of(match.name)
            found.add(absolute(match))
    return [*sorted(found), *(remote[url] for url in sorted(remote))]


def absolute(path: Path) -> Path:
    """Return the path without links in its folders, but with its own name.

    Its ending says how to read it. In a Hugging Face cache, files are links to blobs that have no ending.
    """
    return path.parent.resolve() / path.name


def local_inputs(files: Sequence[Path | RemoteFile], folder: Path) -> list[Path]:
    """Return the inputs of tasks: local files as they are, and a stub in `folder` for each remote one."""
    return [write_stub(file, folder) if isinstance(file, RemoteFile) else file for file in files]


def check_inputs(files: Sequence[Path | RemoteFile], config: InputConfig) -> None:
    """Check the settings against the first local Parquet file. ConfigError: it has no column for the texts."""
    first = next((file for file in files if isinstance(file, Path) and file.suffix == ".parquet"), None)
    if first is not None:
        check_columns(first, config.text_field, config.id_field)


def kind_of(name: str) -> str:
    """Return the kind of an input file by its ending; ConfigError if the ending is unknown."""
    for ending, kind in ENDINGS.items():
        if name.endswith(ending):
            return kind
    raise ConfigError(f"input.paths: '{name}' is invalid: the ending is unknown. Use {', '.join(ENDINGS)}")


def form_of(path: Path) -> str:
    """Return the kind and the packing by which a file is read, as a part of a name, for example "-json-lines-gz".

    A file with the same content and another ending may give other documents. It is "" for the stub of a remote file,
    whose content has the name.
    """
    if path.suffix == STUB_ENDING:
        return ""
    packing = next((p for p in PACKINGS if p and path.name.endswith(p)), "")
    return f"-{kind_of(path.name)}{packing}".replace(" ", "-").replace(".", "-")


def read_records(path: Path, config: InputConfig) -> Iterator[Page | Document | Dropped]:
    """Yield every record of an input file: a page, a document, or why it is neither, with its position in the file.

    Positions in compressed text and JSON lines are offsets in the unpacked content.
    """
    kind = kind_of(path.name)
    if kind == "web archive":
        limit, check = config.max_record_bytes, config.check_digests
        yield from read_web_archive(path, max_record_bytes=limit, check_digests=check)
    elif kind == "parquet":
        columns = (config.text_field, config.id_field)
        yield from read_parquet(path, *columns, max_record_bytes=config.max_record_bytes)
    else:
        yield from _read_stream(path, config, kind)


def _read_stream(path: Path, config: InputConfig, kind: str) -> Iterator[Document | Dropped]:
    origin = Origin(path)
    separator = b"\n" if kind == "json lines" else config.text_separator.encode()
    read = _json_document if kind == "json lines" else _text_document
    with Packed(path) as packed, reader_faults(packed):
        parts = split_stream(
            salvaged_blocks(packed, path.suffix, max_window_bytes=config.max_window_bytes),
            separator,
            max_bytes=config.max_record_bytes,
            give_up_bytes=config.max_record_bytes * _GIVE_UP.get(path.suffix, _GIVE_UP_FAST),
        )
        try:
            for part in parts:
                if path.suffix not in PACKINGS:
                    packed.block_start = part.start  # here the position is known exactly
                if isinstance(part, Gap):
                    yield origin.drop(part.reason, 0, part.start, detail=part.detail, unread=Unread(part.n_bytes))
                    if not separator:  # the whole file is one document
                        return
                elif part.data is None:
                    yield origin.drop("too_large", part.n_bytes, part.start)
                elif part.data.strip():
                    record = read(part, config, origin)
                    if not (part.cut and (isinstance(record, Dropped) or kind == "text")):  # else it is of the gap
                        yield record
        except Broken as error:
            rest = Unread(packed.n_bytes - packed.at)
            yield origin.drop(error.reason, 0, error.start, detail=error.detail, unread=rest)


def _json_document(part: StreamPart, config: InputConfig, origin: Origin) -> Document | Dropped:
    assert part.data is not None
    if part.n_bytes > _LONG_LINE and sum(map(part.data.count, (b",", b":", b"[", b"{"))) > _MAX_VALUES:
        return origin.drop("malformed", part.n_bytes, part.start, detail=f"more than {_MAX_VALUES} JSON values")
    text = decode_utf8(part.data.removeprefix(b"\xef\xbb\xbf") if part.start == 0 else part.data)
    if text is None:
        return origin.drop("not_utf8", part.n_bytes, part.start)
    try:
        values = decode_json(text)
    except ValueError as error:
        return origin.drop("malformed", part.n_bytes, part.start, detail=str(error)[:200])
    document = from_fields(values, text_field=config.text_field, id_field=config.id_field)
    if document is None:
        given = usable_id(values.get(config.id_field)) if isinstance(values, dict) else ""
        detail = f"no text in '{config.text_field}'"
        return origin.drop("malformed", part.n_bytes, part.start, id=given, detail=detail)
    return document


def _text_document(part: StreamPart, config: InputConfig, origin: Origin) -> Document | Dropped:
    assert part.data is not None
    data = part.data.removeprefix(b"\xef\xbb\xbf") if part.start == 0 else part.data
    text = decode_utf8(data)
    if text is None:
        return origin.drop("not_utf8", part.n_bytes, part.start)
    return Document(content_id("text", text.encode()), text)
