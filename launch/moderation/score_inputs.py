"""The texts to score: token files, JSON lines, Parquet, web archives, pages and plain text, one at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents.records import Dropped, usable_id
from data_prep.documents.shards import whole_text
from data_prep.extraction.extract import extract_texts
from data_prep.extraction.page_sandbox import Failure
from data_prep.extraction.page_text import ExtractConfig
from data_prep.inputs.config import InputConfig, kind_of
from data_prep.inputs.find import find_inputs
from data_prep.readers.readers import FieldRecord, read_fields, read_records
from data_prep.readers.remote_files import RemoteFile
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.moderation.labels import text_id
from gpt.token_files.corpus import check_tokenizer, open_tokens
from gpt.tokenizer.tokenizers import Tokenizer
from launch.moderation.windows import Ints

EMPTY = "empty"  # reason: the text is missing or blank
_OTHER_TEXT_FIELDS = ("prompt", "comment_text", "tweet")


@dataclass(frozen=True)
class TextToScore:
    """A text with its id. `tokens`: of a token file, without the end-of-document token; None: they must be made."""

    id: str
    text: str
    source: str
    groups: Mapping[str, str] = field(default_factory=dict)
    tokens: Ints | None = None


@dataclass(frozen=True)
class SetAside:
    """A record that gives no text, and the reason."""

    id: str
    reason: str
    source: str


@dataclass(frozen=True)
class ScoreInputs:
    """Files to read in order. `token_prefixes` come after `files`. `group_fields`: fields that become groups."""

    files: tuple[Path, ...]
    token_prefixes: tuple[Path, ...]
    config: InputConfig
    group_fields: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [str(path) for path in (*self.files, *self.token_prefixes)]

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and time of each file: they decide whether an interrupted run may continue."""
        paths = [*self.files, *(path for prefix in self.token_prefixes for path in _token_files(prefix))]
        found = []
        for path in paths:
            stat = path.stat() if path.exists() else None
            found.append({"path": str(path), "bytes": stat and stat.st_size, "mtime_ns": stat and stat.st_mtime_ns})
        return found


def find_score_inputs(
    given: Sequence[str], *, text_field: str, id_field: str, group_fields: Sequence[str] = ()
) -> ScoreInputs:
    """Tell files, folders and patterns from prefixes of token files. ConfigError: one names nothing readable."""
    prefixes = [Path(one) for one in given if _is_token_prefix(Path(one))]
    others = tuple(one for one in given if Path(one) not in prefixes)
    config = InputConfig(
        paths=others or ("-",), text_field=text_field, id_field=id_field, endings={".json": "json lines"}
    )
    try:
        found = find_inputs(others, endings=config.endings) if others else []
    except ConfigError as error:  # it names keys of a recipe
        reason = str(error).removeprefix("input.paths: ").replace("; input.endings adds others", "")
        raise ConfigError(f"INPUT is invalid: {reason.replace(', or set input.endings', '')}") from None
    if remote := next((one for one in found if isinstance(one, RemoteFile)), None):
        raise ConfigError(f"{remote.url} is invalid here: it is not on this machine. Copy it first")
    files = tuple(one for one in found if isinstance(one, Path))
    return ScoreInputs(files, tuple(prefixes), config, tuple(group_fields))


def _is_token_prefix(path: Path) -> bool:
    return bool(_token_files(path))


def _token_files(prefix: Path) -> list[Path]:
    """The indexes and token files of a prefix, in one pair or in shards."""
    indexes = [Path(f"{prefix}.idx"), *sorted(prefix.parent.glob(f"{prefix.name}-*-of-*.idx"))]
    return [path for index in indexes if index.is_file() for path in (index, index.with_suffix(".bin"))]


def texts_to_score(inputs: ScoreInputs, tokenizer: Tokenizer, tokenizer_file: Path) -> Iterator[TextToScore | SetAside]:
    """Every text of the inputs, and what had to be set aside. The tokenizer is that of the classifier.

    ConfigError: another tokenizer made the token files.
    """
    for path in inputs.files:
        if kind_of(path.name, inputs.config.endings) in ("json lines", "parquet"):
            yield from _of_fields(path, inputs)
        else:
            yield from _of_records(path, inputs.config)
    for prefix in inputs.token_prefixes:
        check_tokenizer(prefix, path=tokenizer_file, fingerprint=tokenizer.fingerprint)
        yield from _of_tokens(prefix, tokenizer)


def _of_fields(path: Path, inputs: ScoreInputs) -> Iterator[TextToScore | SetAside]:
    for record in read_fields(path, inputs.config):
        if isinstance(record, Dropped):
            yield SetAside(record.id, record.reason, str(path))
            continue
        text = _text(record.values, inputs.config.text_field)
        if text is None:
            yield SetAside(f"{path.name}@{record.offset}", EMPTY, str(path))
            continue
        yield TextToScore(
            usable_id(record.values.get(inputs.config.id_field)) or text_id(text),
            text,
            whole_text(str(record.values.get("source") or path)),
            _groups(record, inputs.group_fields),
        )


def _text(values: Mapping[str, Any], name: str) -> str | None:
    """A record's text, None if it is blank. Without the field `text`, the usual names of other data sets are tried."""
    names = (name, *_OTHER_TEXT_FIELDS) if name == "text" else (name,)
    found = next((values[one] for one in names if isinstance(values.get(one), str)), "")
    text = whole_text(found)
    return text if text.strip() else None


def _groups(record: FieldRecord, names: Iterable[str]) -> dict[str, str]:
    given = record.values.get("groups")
    if isinstance(given, str):  # a column of Parquet
        given = _json_object(given)
    groups = dict(given) if isinstance(given, dict) else {}
    groups |= {name: record.values[name] for name in names if record.values.get(name) is not None}
    return {whole_text(str(key)): whole_text(str(value)) for key, value in groups.items() if value is not None}


def _json_object(text: str) -> Any:
    with suppress(ValueError):
        return decode_json(text)
    return None


def _of_records(path: Path, config: InputConfig) -> Iterator[TextToScore | SetAside]:
    for record, text in extract_texts(read_records(path, config), ExtractConfig()):
        if isinstance(record, Dropped):
            yield SetAside(record.id, record.reason, str(path))
        elif isinstance(text, Failure):
            yield SetAside(record.id, text.reason, str(path))
        elif not text.strip():
            yield SetAside(record.id, EMPTY, str(path))
        else:
            yield TextToScore(record.id, text, whole_text(str(record.metadata.get("url") or path)))


def _of_tokens(prefix: Path, tokenizer: Tokenizer) -> Iterator[TextToScore | SetAside]:
    tokens = open_tokens(prefix)
    starts = tokens.document_starts()
    for number in range(tokens.n_documents):
        ids = tokens.read(int(starts[number]), int(starts[number + 1])).astype(np.int64)
        if len(ids) and ids[-1] == tokenizer.end_of_document_id:
            ids = ids[:-1]
        name = f"{prefix.name}:{number}"
        if not len(ids):
            yield SetAside(name, EMPTY, str(prefix))
        else:
            yield TextToScore(name, tokenizer.decode(ids.tolist()), str(prefix), tokens=ids)
