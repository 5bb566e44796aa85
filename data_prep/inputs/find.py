"""Find the input files of a recipe, and check its settings against the first of them."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from data_prep.documents.records import decode_text, text_fields
from data_prep.inputs.config import ENDINGS, InputConfig, is_readable, kind_of
from data_prep.inputs.input_lists import Answers, ask_all, files_in, linked_folders
from data_prep.readers.compressed import read_lines
from data_prep.readers.parquet_files import check_columns
from data_prep.readers.remote_files import RemoteFile, is_url, write_stub
from data_prep.readers.unpackers import Broken
from gpt.errors import ConfigError, escaped
from gpt.files.json_text import decode_json

_NAMED = 3
_LINE_FILES = 4  # of JSON lines, one of which must have the text's field
_LOOKED_AT = 20  # lines of each


def find_inputs(
    patterns: Sequence[str],
    *,
    known: Answers | None = None,
    endings: Mapping[str, str] | None = None,
    without: Sequence[Path] = (),
) -> list[Path | RemoteFile]:
    """Return the files that the patterns match, each once, sorted. ConfigError: no match, or an unknown ending.

    A folder gives the files in it that can be read, except hidden ones and those in the folders of `without`.
    `known`: earlier answers, for which no server is asked. `endings`: as `input.endings`.
    """
    found: set[Path] = set()
    urls = [pattern for pattern in patterns if is_url(pattern)]
    # A URL that gives other URLs without being a pattern is a folder: what cannot be read there is left out.
    answers = ask_all(urls, known or {})
    remote = {
        file.url: file
        for file in answers
        if (is_readable(file.name, endings) if _is_in_folder(file) else kind_of(file.name, endings))
    }
    for pattern in (pattern for pattern in patterns if not is_url(pattern)):
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise ConfigError(f"input.paths: no file matches '{pattern}' (current folder: {Path.cwd()})")
        for match in matches:
            if match.is_dir() and match is path:
                inside = [file for file in files_in(match, without=without) if is_readable(file.name, endings)]
                if not inside:
                    raise ConfigError(
                        f"input.paths: no file in the folder '{match}' can be read. Endings: {', '.join(ENDINGS)}; "
                        "input.endings adds others"
                    )
                found.update(map(absolute, inside))
            elif match.is_dir():
                raise ConfigError(f"input.paths: '{match}' is a folder. Name its files, such as '{match}/*.warc.gz'")
            elif not match.is_file():
                raise ConfigError(f"input.paths: '{match}' is not a regular file. Copy its content to a file")
            else:
                kind_of(match.name, endings)
                found.add(absolute(match))
    return [*sorted(found), *(remote[url] for url in sorted(remote))]


def left_out(config: InputConfig, *, without: Sequence[Path] = ()) -> list[Path]:
    """Return the files in the folders of `input.paths` that are not read, because of their endings."""
    folders = [Path(path).expanduser() for path in config.paths if not is_url(path)]
    files = chain.from_iterable(files_in(folder, without=without) for folder in folders if folder.is_dir())
    return [file for file in files if not is_readable(file.name, config.endings)]


def name_linked(config: InputConfig, *, without: Sequence[Path] = ()) -> str:
    """Say in one line which links to folders are not followed, "" if there are none."""
    folders = [Path(path).expanduser() for path in config.paths if not is_url(path)]
    links = [link for folder in folders if folder.is_dir() for link in linked_folders(folder, without=without)]
    if not links:
        return ""
    names = ", ".join(map(str, links[:_NAMED]))
    more = f" and {len(links) - _NAMED:,} more" if len(links) > _NAMED else ""
    return escaped(
        f"input.paths: {len(links):,} links to folders are not followed: {names}{more}. Name a folder in input.paths "
        "to read it"
    )


def name_left_out(files: Sequence[Path]) -> str:
    """Say in one line how many files are left out, and name their endings and some of them."""
    endings = Counter(file.suffix or "no ending" for file in files)
    kinds = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(6))
    names = ", ".join(file.name for file in files[:_NAMED])
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    return escaped(
        f"input.paths: {len(files):,} files have endings that are not read ({kinds}): {names}{more}. "
        "input.endings adds endings"
    )


def _is_in_folder(file: RemoteFile) -> bool:
    return file.pattern != file.url and not any(mark in file.pattern for mark in "*[?")


def absolute(path: Path) -> Path:
    """Return the path without links in its folders, but with its own name.

    Its ending says how to read it. In a Hugging Face cache, files are links to blobs that have no ending.
    """
    return path.parent.resolve() / path.name


def local_inputs(files: Sequence[Path | RemoteFile], folder: Path) -> list[Path]:
    """Return the inputs of tasks: local files as they are, and a stub in `folder` for each remote one."""
    return [write_stub(file, folder) if isinstance(file, RemoteFile) else file for file in files]


def check_inputs(files: Sequence[Path | RemoteFile], config: InputConfig) -> None:
    """Check the settings against the first local Parquet file and the first ones of JSON lines.

    ConfigError: it has no column or field for the texts.
    """
    local = [file for file in files if isinstance(file, Path)]
    is_whole = not (config.text_separator or config.text_split_bytes)
    if len(files) == 1 and local and is_whole and kind_of(local[0].name, config.endings) in ("text", "page"):
        raise ConfigError(
            f"input.paths: {local[0]} is one document, and training and validation need one each. Set "
            "input.text_split_bytes = 4096 to cut it at paragraphs, or input.text_separator, or give more files"
        )
    first = next((file for file in local if file.suffix == ".parquet"), None)
    if first is not None:
        check_columns(first, config.text_field, config.id_field)
    lines = [file for file in local if kind_of(file.name, config.endings) == "json lines"][:_LINE_FILES]
    fields = text_fields(record for file in lines for record in sample_lines(file, config))
    if fields and config.text_field not in fields:
        raise ConfigError(
            f"input.text_field = '{config.text_field}' is invalid: {lines[0]} has no such text. Its texts are in "
            f"{', '.join(fields)}. Use input.text_field = '{next(iter(fields))}'"
        )


def sample_lines(path: Path, config: InputConfig, n_lines: int = _LOOKED_AT) -> list[object]:
    """Return the first lines of a file as JSON values, without those that are none. A damaged file gives fewer."""
    values: list[object] = []
    try:
        for line in islice(read_lines(path, max_bytes=config.max_record_bytes), n_lines):
            text = None if line is None else decode_text(line.removeprefix(b"\xef\xbb\xbf"), config.encoding)
            if text and text.strip():
                values.append(decode_json(text))
    except (Broken, OSError, ValueError):
        pass
    return values
