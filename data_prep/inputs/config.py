"""The [input] section of a recipe, and the kinds of files by their endings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.documents.records import usable_encoding
from data_prep.readers.compressed import PACKINGS, WINDOW_BYTES
from data_prep.readers.remote_files import STUB_ENDING
from gpt.errors import ConfigError

# Web archives are packed record by record; only gzip files are made that way, so bzip2, xz and zstandard are left out.
ENDINGS = {
    **{f"{name}{packing}": "web archive" for name in (".warc", ".wet", ".arc") for packing in ("", ".gz")},
    **{f".jsonl{packing}": "json lines" for packing in PACKINGS},
    **{f".json{packing}": "json lines" for packing in PACKINGS if packing},  # the names in dolma
    **{f"{name}{packing}": "text" for name in (".txt", ".md", ".rst") for packing in PACKINGS},
    **{f"{name}{packing}": "page" for name in (".html", ".htm") for packing in PACKINGS},
    ".parquet": "parquet",
}
KINDS = tuple(dict.fromkeys(ENDINGS.values()))


@dataclass(frozen=True)
class InputConfig:
    """The [input] section of a recipe: where the documents come from."""

    paths: tuple[str, ...] = ()
    """Files, folders or patterns such as "crawl/**/*.warc.gz", relative to the current folder, or URLs that fsspec can
    read. In a folder, files with unknown endings and links to folders are left out and named."""
    path_lists: tuple[str, ...] = ()
    """Files with one such path a line, such as Common Crawl's warc.paths.gz."""
    path_base: str = ""
    """Put before each line of `path_lists`, such as "https://data.commoncrawl.org/"."""
    source: Literal["files", "python-docs"] = "files"
    """`python-docs` reads the documentation pages of the running Python instead of files."""
    text_field: str = "text"
    """Field of JSON lines, or column of Parquet files, with the text."""
    id_field: str = "id"
    """Field or column with the document's id. Documents without one, and all if it is "", get an id from their text."""
    text_separator: str = ""
    """Cuts text files into documents. `\\n` and `\\t` are a line's end and a tab. Empty: one document a file."""
    text_split_bytes: int | None = None
    """Cuts text files into documents of this many bytes to twice as many, at a paragraph's end if there is one."""
    encoding: str = ""
    """Encoding of text and JSON lines that are not UTF-8, such as "cp1252" or "utf-16-le". Those are dropped by
    default. UTF-16 with a byte-order mark is always read."""
    endings: dict[str, str] = field(default_factory=dict)
    """How to read files with further endings, such as { ".py" = "text", ".json" = "json lines" }. "" is the ending of a
    name without a dot."""
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
        if self.text_split_bytes is not None and (self.text_split_bytes < 64 or self.text_separator):
            rule = "cannot be set with input.text_separator" if self.text_separator else "must be at least 64"
            raise ConfigError(f"input.text_split_bytes = {self.text_split_bytes} is invalid: it {rule}")
        if self.encoding and not usable_encoding(self.encoding):
            raise ConfigError(
                f"input.encoding = {self.encoding!r} is invalid: must be an encoding that Python knows, such as "
                "cp1252, latin-1, gb18030 or utf-16-le"
            )
        for ending, kind in self.endings.items():
            if kind not in KINDS:
                raise ConfigError(f"input.endings: {ending!r} = {kind!r} is invalid. Use {', '.join(KINDS)}")
            if ending and (not ending.startswith(".") or ending.count(".") > 1):
                raise ConfigError(f"input.endings: {ending!r} is invalid: must be such as '.py', or ''")
        if self.max_record_bytes < 1:
            raise ConfigError(f"input.max_record_bytes = {self.max_record_bytes} is invalid: must be at least 1")

    @property
    def separator(self) -> bytes:
        """The separator of documents in text files, with `\\n`, `\\r` and `\\t` replaced."""
        text = self.text_separator
        for escape, meant in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
            text = text.replace(escape, meant)
        return text.encode()


def is_readable(name: str, endings: Mapping[str, str] | None = None) -> bool:
    """Return whether a file of this name can be read."""
    return _kind(name, endings or {}) is not None


def kind_of(name: str, endings: Mapping[str, str] | None = None) -> str:
    """Return the kind of an input file by its ending; ConfigError if the ending is unknown."""
    kind = _kind(name, endings or {})
    if kind is None:
        raise ConfigError(
            f"input.paths: '{name}' is invalid: the ending is unknown. Use {', '.join(ENDINGS)}, or set input.endings"
        )
    return kind


def _kind(name: str, endings: Mapping[str, str]) -> str | None:
    base = name.removesuffix(next((p for p in PACKINGS if p and name.endswith(p)), ""))
    return endings.get(Path(base).suffix) or next((kind for end, kind in ENDINGS.items() if name.endswith(end)), None)


def form_of(path: Path, endings: Mapping[str, str] | None = None) -> str:
    """Return the kind and the packing by which a file is read, as a part of a name, for example "-json-lines-gz".

    A file with the same content and another ending may give other documents. It is "" for the stub of a remote file,
    whose content has the name.
    """
    if path.suffix == STUB_ENDING:
        return ""
    packing = next((p for p in PACKINGS if p and path.name.endswith(p)), "")
    return f"-{kind_of(path.name, endings)}{packing}".replace(" ", "-").replace(".", "-")
