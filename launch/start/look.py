"""Look at a person's files before a corpus is made of them: kinds, encodings, fields, sizes and a sample of texts.

Local files only; hub.py looks at data sets behind URLs. Nothing is unpacked or read as a whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from data_prep.documents.records import Dropped, text_fields
from data_prep.extraction.extract import extract_texts
from data_prep.extraction.page_text import ExtractConfig
from data_prep.inputs.config import InputConfig, is_readable, kind_of
from data_prep.inputs.find import sample_lines
from data_prep.inputs.input_lists import files_in
from data_prep.readers.compressed import PACKINGS, Gap, salvaged_blocks
from data_prep.readers.readers import read_records
from data_prep.readers.unpackers import Broken, Packed
from gpt.errors import ConfigError, did_you_mean, import_extra
from launch.start.fields import choose_field, choose_id_field, with_ids
from launch.start.texts import START, find_encoding, is_utf8, looks_like_text, text_in_lines

SAMPLE_FILES, SAMPLE_BYTES = 24, 2 << 20  # files whose texts are sampled, and bytes of text in all
_OPENED = 2_000  # files whose first bytes are read; the others are what their ending says
_RATIO_BYTES = 1 << 20  # of a packed file that are unpacked to see the ratio
_FILE_DOCUMENTS = 400
_LINES, _LINE_FILES = 200, 4  # JSON lines and files that are looked at for their fields
_WITH_FIELDS = ("json lines", "parquet")
_PAGE_TEXT = 0.1  # share of an archive's bytes that is text, roughly
_LINES_CONFIG = InputConfig(paths=("-",))
_SEPARATORS = ("<|endoftext|>", "\f")  # between the documents of one text file


@dataclass(frozen=True)
class Survey:
    """What is in the files. `text_bytes` and `documents` are estimates from samples; `documents` counts whole files.

    `separator`: a mark between documents that the text files have. `sample`: beginnings of the file of texts.
    """

    paths: tuple[str, ...]
    kinds: dict[str, int]  # kind: files
    files: int
    file_bytes: int
    text_bytes: int
    documents: int
    sample: tuple[str, ...]
    endings: dict[str, str]
    not_text: tuple[Path, ...] = ()
    encoding: str = ""
    recoded: tuple[Path, ...] = ()  # files that are not UTF-8
    text_field: str = "text"
    id_field: str = "id"
    fields: tuple[str, ...] = ()
    separator: str = ""


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str  # "" if it is no text
    n_bytes: int
    start: bytes  # its first unpacked bytes, for text and JSON lines
    packing_ratio: float  # unpacked / packed bytes
    changed: tuple[int, int]


def look(paths: Iterable[str], *, without: Path, following: Callable[[list[Path]], Iterable[Path]] = iter) -> Survey:
    """Survey local files and folders. ConfigError: there is nothing to read, or a file changes meanwhile.

    `without`: the future corpus folder, which is no input. `following` yields the files and shows the progress.
    """
    given = tuple(dict.fromkeys(paths))
    found = list(dict.fromkeys(path for name in given for path in _files(name, without)))
    endings = _endings(found)
    step = max(1, len(found) // _OPENED)
    files = [_open(path, endings, inside=number % step == 0) for number, path in enumerate(following(found))]
    texts = [file for file in files if file.kind]
    if not texts:
        raise ConfigError(_nothing(given, files))
    others = tuple(file.path for file in files if not file.kind)
    latin = [f for f in texts if f.start and f.kind in ("text", "json lines") and not is_utf8(f.start)]
    encoding = find_encoding([file.start for file in latin]) if latin else ""
    config = InputConfig(paths=("-",), encoding=encoding, endings=endings)
    records = _records(texts, config)
    fields = _fields(texts, records)
    if not fields:  # lines of settings among texts, for example, are no texts
        others += tuple(file.path for file in texts if file.kind in _WITH_FIELDS)
        texts = [file for file in texts if file.kind not in _WITH_FIELDS]
        config = replace(config, endings={end: kind for end, kind in endings.items() if kind not in _WITH_FIELDS})
        if not texts:
            raise ConfigError(_nothing(given, files))
    config = replace(config, text_field=choose_field(fields) if fields else "text", id_field=choose_id_field(records))
    survey = _measured(texts, config)
    for file in texts:
        if _state(file.path) != file.changed:
            raise ConfigError(f"{file.path} changes while it is read. Run the command again when it is complete")
    return replace(
        survey, paths=given, not_text=others, recoded=tuple(file.path for file in latin), fields=tuple(fields)
    )


def _files(name: str, without: Path) -> Iterator[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        yield from files_in(path, without=[without])
    elif path.is_file():
        yield path
    else:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        meant = did_you_mean(path.name, near)
        raise ConfigError(f"{name}: no such file or folder (current folder: {Path.cwd()}). {meant}".rstrip())


def _endings(files: Iterable[Path]) -> dict[str, str]:
    """Return the unknown endings of files that look like text, with the kind of these files."""
    votes: dict[str, Counter[str]] = {}
    for path in files:
        if is_readable(path.name):
            continue
        base = path.name.removesuffix(next((p for p in PACKINGS if p and path.name.endswith(p)), ""))
        counts = votes.setdefault(Path(base).suffix, Counter())
        if counts.total() < 10:
            start, _ = _unpacked(path)
            counts[_kind_of_unknown(path, start)] += 1
    kinds = {
        ending: max((k for k in counts if k), key=counts.__getitem__, default="") for ending, counts in votes.items()
    }
    return {
        ending: kind
        for ending, kind in sorted(kinds.items())
        if kind and votes[ending][kind] * 2 > votes[ending].total()
    }


def _kind_of_unknown(path: Path, start: bytes) -> str:
    if not looks_like_text(start):
        return ""
    return "json lines" if path.name.endswith(".json") and sample_lines(path, _LINES_CONFIG, 2) else "text"


def _open(path: Path, endings: dict[str, str], *, inside: bool) -> _File:
    kind = kind_of(path.name, endings) if is_readable(path.name, endings) else ""
    changed = _state(path)
    start, ratio = (b"", 1.0) if not inside or kind in ("", "parquet", "web archive") else _unpacked(path)
    if inside and kind in ("text", "json lines", "page") and not looks_like_text(start):
        kind = ""
    return _File(path, kind, changed[0], start, ratio, changed)


def _unpacked(path: Path) -> tuple[bytes, float]:
    """Return the first bytes of a file's content, and how many times longer than the packed ones they are."""
    data = b""
    try:
        with Packed(path) as packed:
            limit = _RATIO_BYTES if path.suffix in PACKINGS else START
            for block in salvaged_blocks(packed, path.suffix):
                if isinstance(block, Gap) or len(data) >= limit:
                    break
                data += block
            return data[:START], max(1.0, len(data) / max(1, packed.at))
    except (Broken, OSError):
        return b"", 1.0


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _nothing(given: tuple[str, ...], files: list[_File]) -> str:
    where = ", ".join(given)
    if not files:
        return f"{where}: there are no files. Give a folder or files with texts"
    if all(file.n_bytes == 0 for file in files):
        return f"{where}: the files are empty ({len(files):,}). Give files with texts"
    names = ", ".join(file.path.name for file in files[:3])
    return (
        f"{where}: none of the {len(files):,} files is text ({names}). Give text, Markdown, HTML, JSON lines, "
        "Parquet or web archives"
    )


def _records(files: list[_File], config: InputConfig) -> list[object]:
    """Return the first records of some JSON lines and Parquet files."""
    lines = [file.path for file in files if file.kind == "json lines"][:_LINE_FILES]
    tables = [file.path for file in files if file.kind == "parquet"][:_LINE_FILES]
    records = [record for path in lines for record in sample_lines(path, config, _LINES)]
    return records + [row for path in tables for row in _rows(path)]


def _fields(files: list[_File], records: list[object]) -> dict[str, int]:
    """Return the text fields of records, the longest first."""
    fields = text_fields(records)
    if records and not fields and all(file.kind in _WITH_FIELDS for file in files):
        names = sorted({str(key) for record in records if isinstance(record, dict) for key in record})
        raise ConfigError(
            f"{files[0].path}: no field holds text. Its fields: {', '.join(names[:20]) or 'none'}. Write the "
            "texts to one field first"
        )
    return fields


def _rows(path: Path) -> list[object]:
    """Return the first rows of a Parquet file: its columns of text, and the ids."""
    arrow, parquet = (import_extra(name, extra="data") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        file = parquet.ParquetFile(path)
        texts = [
            f.name for f in file.schema_arrow if arrow.types.is_string(f.type) or arrow.types.is_large_string(f.type)
        ]
        columns = with_ids(texts, file.schema_arrow.names)
        batch = next(file.iter_batches(batch_size=_LINES, columns=columns), None) if texts else None
        return [] if batch is None else list(batch.to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _measured(files: list[_File], config: InputConfig) -> Survey:
    """Read a sample of the documents, and estimate from it the bytes of text and the documents of all files."""
    step = max(1, len(files) // SAMPLE_FILES)
    sample: list[str] = []
    measured: dict[str, tuple[int, int, int]] = {}  # kind: unpacked bytes, bytes of text, documents in them
    usable = [file for file in files if file.start or file.kind in ("parquet", "web archive")]
    for file in usable[::step][:SAMPLE_FILES]:
        texts = _texts(file.path, config, SAMPLE_BYTES // min(SAMPLE_FILES, len(files)))
        sample += texts
        n_text, whole = (
            sum(len(text.encode("utf-8", "replace")) for text in texts),
            int(file.n_bytes * file.packing_ratio),
        )
        if file.kind == "json lines":
            n_text, whole, n_documents = text_in_lines(file.start, config.text_field) or (
                n_text,
                n_text,
                len(texts) or 1,
            )
        elif file.kind == "parquet":
            n_documents = _row_count(file.path)
            n_text = int(n_text / max(1, len(texts)) * n_documents)
        elif file.kind == "web archive":
            n_documents = max(1, int(whole * _PAGE_TEXT / max(1.0, n_text / max(1, len(texts)))))
            n_text = int(whole * _PAGE_TEXT)
        elif file.kind == "text":
            n_text, n_documents = int(whole), 1
        else:
            n_documents = 1
        before = measured.get(file.kind, (0, 0, 0))
        measured[file.kind] = (before[0] + int(whole), before[1] + n_text, before[2] + n_documents)
    text_bytes = all_documents = 0.0
    for kind, (whole, n_text, n) in measured.items():
        total = sum(file.n_bytes * file.packing_ratio for file in files if file.kind == kind)
        text_bytes += total * n_text / max(1, whole)
        all_documents += sum(f.kind == kind for f in files) if kind in ("text", "page") else total * n / max(1, whole)
    return Survey(
        paths=(),
        kinds=dict(Counter(file.kind for file in files).most_common()),
        files=len(files),
        file_bytes=sum(file.n_bytes for file in files),
        text_bytes=round(text_bytes),
        documents=round(all_documents),
        sample=tuple(sample),
        endings=dict(config.endings),
        encoding=config.encoding,
        text_field=config.text_field,
        id_field=config.id_field,
        separator=find_separator([file.start for file in files if file.kind == "text"]),
    )


def _texts(path: Path, config: InputConfig, max_bytes: int) -> list[str]:
    """Return the first documents of a file, as data preparation reads them, cut to `max_bytes` in all."""
    texts: list[str] = []
    left = max_bytes
    records = (record for record in read_records(path, replace(config, text_split_bytes=4096)))
    usable = (record for record in islice(records, _FILE_DOCUMENTS) if not isinstance(record, Dropped))
    for _, text in extract_texts(usable, ExtractConfig()):
        if isinstance(text, str) and text.strip():
            texts.append(text)
            left -= len(text.encode("utf-8", "replace"))
        if left <= 0:
            break
    return texts


def _row_count(path: Path) -> int:
    return int(import_extra("pyarrow.parquet", extra="data").ParquetFile(path).metadata.num_rows)


def find_separator(starts: Sequence[bytes]) -> str:
    """Return a mark that stands between the documents of text files that begin so, or ""."""
    for mark in _SEPARATORS:
        if starts and sum(start.count(mark.encode()) >= 2 for start in starts) * 2 > len(starts):
            return mark
    return ""
