"""Define documents, their ids, and the compressed JSON-lines shards that carry them between stages."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, Protocol

from gpt.errors import import_extra
from gpt.files.json_text import decode_json

# A piece of a document; a conversation of a prompt; a labelled text of those that differ in case or spaces only.
_PIECE = re.compile(r"#piece-\d+$|(?<=^prompt:[0-9a-f]{32})#.*$|(?<=^labels:[0-9a-f]{32})#.*$")


@dataclass(frozen=True)
class Document:
    """One text with its permanent id, which comes from the source and not from the order or the sharding."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Size of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


class DamagedShardError(Exception):
    """A shard is not as it was written, or cannot be read."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: damaged ({why})")
        self.path = path


class Write(Protocol):
    """Appends one document to a shard."""

    def __call__(self, document: Document) -> None: ...


@contextmanager
def write_shard(path: Path) -> Iterator[Write]:
    """Open a `.jsonl.zst` shard to write documents to, one line each; the same documents give the same bytes."""
    zstandard = import_extra("zstandard", extra="data")
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with open(path, "wb") as raw, compressor.stream_writer(raw, closefd=False) as packed:
        lines = BufferedWriter(packed, 1 << 18)

        def write(document: Document) -> None:
            lines.write(encode_line(document))

        yield write
        lines.flush()


def read_shard(path: Path) -> Iterator[Document]:
    """Yield the documents of a shard that `write_shard` made. DamagedShardError: it is not as it was written."""
    for values in read_packed(path):
        try:
            document = Document(values["id"], values["text"], values["metadata"])
        except (KeyError, TypeError) as error:
            raise DamagedShardError(path, error) from None
        yield document


def read_packed(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a compressed file with one in each line. DamagedShardError: as `read_shard`."""
    zstandard = import_extra("zstandard", extra="data")
    if not path.is_file():
        raise DamagedShardError(path, "missing")
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as packed:
        lines = BufferedReader(packed, 1 << 18)
        while True:
            try:
                line = lines.readline()
                values = decode_json(line) if line else None
            except (zstandard.ZstdError, ValueError) as error:
                raise DamagedShardError(path, error) from None
            if values is None:
                return
            yield values


def encode_line(document: Document) -> bytes:
    """Encode a document as a line of a shard, newline included."""
    values = {"id": document.id, "text": document.text, "metadata": document.metadata}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def keyed_hash(document_id: str, *, key: str) -> int:
    """Hash an id and a key, and nothing else, to 0 to 2^64 - 1; every random draw and order in data_prep uses this."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8, key=key.encode()).digest(), "little")


def content_id(kind: str, *parts: bytes) -> str:
    """Make an id for a record that has none: a digest of its content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return f"{kind}:{digest.hexdigest()}"


def piece_id(document_id: str, number: int) -> str:
    """Id of a piece of a document that was cut."""
    return f"{document_id}#piece-{number}"


def parent_id(document_id: str) -> str:
    """Id of the document that a piece was cut from, or by which conversations or labelled texts are split."""
    return _PIECE.sub("", document_id)


def whole_text(text: str) -> str:
    """Replace lone surrogates, which JSON can express but UTF-8 cannot, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
