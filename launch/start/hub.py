"""Look at a data set behind URLs, such as one of the Hugging Face Hub: list its files, and read the start of some.

Nothing is downloaded whole: a Parquet file gives its description and first rows, other files their first bytes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.documents.records import decode_text, text_fields
from data_prep.inputs.config import is_readable, kind_of
from data_prep.readers.compressed import PACKINGS
from data_prep.readers.remote_files import RemoteFile, find_remote, open_system, with_retries
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json
from launch.start.fields import choose_field, choose_id_field, with_ids
from launch.start.look import Survey, find_separator

_FILES, _ROWS, _START = 3, 300, 1 << 19  # files that are opened; rows, or bytes, that are read of each
_BLOCK = 1 << 18  # bytes of a request
_WAITS_S = (1.0,)  # a person waits
_PACKED_TEXT = 3  # how many times longer the text is than its packed file, roughly
_COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}


def look_remote(urls: Sequence[str]) -> Survey:
    """Survey the files that URLs name: files, patterns or folders. ConfigError: no answer, no such file, or no text."""
    found = [file for url in urls for file in find_remote(with_root(url), waits_s=_WAITS_S)]
    files = [file for file in found if is_readable(file.name)]
    if not files:
        some = ", ".join(file.name for file in found[:3])
        raise ConfigError(f"{urls[0]}: none of its {len(found):,} files can be read ({some}). Name its data files")
    kind = _chosen_kind(files)
    if kind in ("web archive", "page"):
        raise ConfigError(
            f"{urls[0]}: it has files of the kind {kind}. Write a recipe as docs/guides/data/prepare.md says"
        )
    chosen = [file for file in files if kind_of(file.name) == kind]
    sampled = [_sample(file, kind) for file in chosen[:: max(1, len(chosen) // _FILES)][:_FILES]]
    records = [record for records, _ in sampled for record in records]
    fields = text_fields(records)
    if not fields:
        names = sorted({str(key) for record in records if isinstance(record, dict) for key in record})
        raise ConfigError(
            f"{urls[0]}: no field of {chosen[0].name} holds text. Its fields: {', '.join(names) or 'none'}"
        )
    field = choose_field(fields)
    texts = [str(r[field]) for r in records if isinstance(r, dict) and isinstance(r.get(field), str)]
    n_bytes = sum(file.n_bytes or 0 for file in chosen)
    text_bytes = sum(ratio for _, ratio in sampled) / len(sampled) * n_bytes
    mean = sum(len(text.encode("utf-8", "replace")) for text in texts) / max(1, len(texts))
    return Survey(
        paths=tuple(dict.fromkeys(_pattern(url, kind, chosen) for url in urls)),
        kinds={kind: len(chosen)},
        files=len(chosen),
        file_bytes=n_bytes,
        text_bytes=round(text_bytes),
        documents=max(1, round(text_bytes / max(1.0, mean))) if kind != "text" else len(chosen),
        sample=tuple(texts),
        endings={},
        text_field=field if kind != "text" else "text",
        id_field=choose_id_field(records),
        fields=tuple(fields) if kind != "text" else (),
        separator=find_separator(["".join(texts).encode()]) if kind == "text" else "",
    )


def _chosen_kind(files: Sequence[RemoteFile]) -> str:
    """Return the kind of the data files: Parquet before JSON lines before text, if a tenth of the bytes is in it.

    Many data sets of the Hub have the same texts in several forms.
    """
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[kind_of(file.name)] += max(1, file.n_bytes or 0)
    first = [kind for kind in ("parquet", "json lines", "text") if sizes[kind] * 10 >= sizes.total()]
    return first[0] if first else max(sizes, key=sizes.__getitem__)


def with_root(url: str) -> str:
    """Return the URL without a slash at its end."""
    return url.rstrip("/") if not url.endswith("://") else url


def _pattern(url: str, kind: str, chosen: Sequence[RemoteFile]) -> str:
    """Return a pattern of the chosen files only, where a folder has files of other kinds too."""
    root = with_root(url)
    if any(mark in root for mark in "*[?") or any(file.url == root for file in chosen):
        return root
    endings = {_ending(file.name) for file in chosen}
    return f"{root}/**/*{endings.pop()}" if len(endings) == 1 and kind != "text" else root


def _ending(name: str) -> str:
    packing = next((p for p in PACKINGS if p and name.endswith(p)), "")
    return f".{name.removesuffix(packing).rpartition('.')[2]}{packing}"


def _sample(file: RemoteFile, kind: str) -> tuple[list[object], float]:
    """Return records of a remote file, and the bytes of text for each byte of the file."""
    system, path = open_system(file.url)
    read = _parquet_rows if kind == "parquet" else _first_records
    return with_retries(file.url, lambda: read(system, path, file, kind), waits_s=_WAITS_S)


def _parquet_rows(system: Any, path: str, file: RemoteFile, kind: str) -> tuple[list[object], float]:
    arrow, parquet = (import_extra(name, extra="data") for name in ("pyarrow", "pyarrow.parquet"))
    with system.open(path, "rb", block_size=_BLOCK) as opened:
        table = parquet.ParquetFile(opened, pre_buffer=False)
        names = [
            f.name for f in table.schema_arrow if arrow.types.is_string(f.type) or arrow.types.is_large_string(f.type)
        ]
        if not names:
            raise ConfigError(f"{file.url}: no column holds text. It has: {', '.join(table.schema_arrow.names)}")
        columns = with_ids(names, table.schema_arrow.names)
        batch = next(table.iter_batches(batch_size=_ROWS, row_groups=[0], columns=columns), None)
        rows: list[object] = [] if batch is None else list(batch.to_pylist())
        n_rows = table.metadata.num_rows
    field = choose_field(text_fields(rows)) if text_fields(rows) else names[0]
    mean = sum(len(str(row[field]).encode()) for row in rows if isinstance(row, dict)) / max(1, len(rows))
    return rows, mean * n_rows / max(1, file.n_bytes or 1)


def _first_records(system: Any, path: str, file: RemoteFile, kind: str) -> tuple[list[object], float]:
    packing = next((p for p in PACKINGS if p and file.name.endswith(p)), "")
    with system.open(path, "rb", block_size=_BLOCK, compression=_COMPRESSION.get(packing)) as opened:
        start = bytes(opened.read(_START))
    ratio = float(_PACKED_TEXT if packing else 1)
    if kind == "text":
        text = decode_text(start[:-4], "") or ""
        return [{"text": text[i : i + 4096]} for i in range(0, len(text), 4096)], ratio
    lines = start.splitlines()[: -1 if len(start) == _START else None]
    records = [_record(line) for line in lines]
    texts = text_fields(records)
    share = texts[choose_field(texts)] / max(1, sum(map(len, lines))) if texts else 1.0
    return records, ratio * share


def _record(line: bytes) -> object:
    try:
        return decode_json(line)
    except ValueError:
        return None
