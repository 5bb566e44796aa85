"""GPT-2's and GPT-3's byte-pair encoding from the files that OpenAI published, run by tiktoken. Nothing is downloaded.

The vocabulary comes in two forms: `encoder.json` (token: id) with `vocab.bpe` (the merges, best first), or one
`.tiktoken` file with base64 tokens and their ranks. Neither form describes how text is split into words before merging.
Only GPT-2's rule is implemented here; other vocabularies can be used as a Hugging Face tokenizer.json.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes
from gpt.tokenizer.pairs import WORDS, BytePairs

END_OF_DOCUMENT = "<|endoftext|>"
# SHA-256 of the ordered ranks that OpenAI publishes (tiktoken_ext/openai_public.py): (name, end-of-document id).
_RANK_FILES = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": ("r50k_base", 50256),  # GPT-2, GPT-3
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": ("p50k_base", 50256),  # with runs of spaces
}


@dataclass(frozen=True)
class _Vocabulary:
    ranks: dict[bytes, int]
    end_of_document_id: int


class BytePairTokenizer:
    """GPT-2's byte-pair encoding. decode(encode(text)) == text for every text that UTF-8 can represent.

    `files`: (encoder.json, vocab.bpe) or (x.tiktoken,). ConfigError: a file has another format than its name says, the
    merges do not give the vocabulary, a rank file is not OpenAI's for GPT-2 or GPT-3, or tiktoken is not installed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        contents = [read_bytes(path) for path in files]
        vocabulary = _from_ranks(files[0], contents[0]) if len(files) == 1 else _from_merges(files, contents)
        self.name = files[-1].name
        self.ranks = vocabulary.ranks  # token bytes -> id, without the end of document; merges happen in this order
        self.end_of_document_id = vocabulary.end_of_document_id
        self.vocab_size = len(vocabulary.ranks) + 1
        self.fingerprint = _fingerprint(contents)
        self._pairs = BytePairs(
            self.name,
            vocabulary.ranks,
            words=WORDS,
            special_tokens={END_OF_DOCUMENT: vocabulary.end_of_document_id},
        )
        self._model: Any = self._pairs.model

    def encode(self, text: str) -> list[int]:
        """Encode a text. A lone surrogate is read as U+FFFD."""
        return self._pairs.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text on the caller's thread."""
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Encode each text as a read-only array (n,). Faster than lists: no id becomes a Python object."""
        return [self._pairs.encode_array(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids. The end-of-document token is left out. ConfigError: an id is outside the vocabulary."""
        numbers = [int(i) for i in ids]
        for i in numbers:
            if not 0 <= i < self.vocab_size:
                raise ConfigError(f"token id {i} is outside the {self.vocab_size} pieces of {self.name}")
        return str(self._model.decode([i for i in numbers if i != self.end_of_document_id]))


def printable_bytes() -> dict[str, int]:
    """Return the character that represents each byte in encoder.json and vocab.bpe, in the order of the bytes' ids.

    A byte that is a printable Latin-1 character represents itself. The others, in order, are U+0100 and up
    (github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _from_merges(files: Sequence[Path], contents: Sequence[bytes]) -> _Vocabulary:
    """Read encoder.json and check it against the vocabulary that the merges give."""
    encoder_path, merges_path = files
    try:
        encoder = decode_json(contents[0])
        lines = contents[1].decode("utf-8").split("\n")
    except ValueError as error:
        raise ConfigError(f"{encoder_path}, {merges_path}: not a byte-pair vocabulary ({error})") from None
    if not isinstance(encoder, dict) or not all(type(i) is int for i in encoder.values()):
        raise ConfigError(f"{encoder_path}: not an encoder.json, which maps tokens to ids")
    byte_of = printable_bytes()
    characters = set(byte_of)
    known = {character: rank for rank, character in enumerate(byte_of)}  # bytes first, then the merges in order
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split()
        token = "".join(pair)
        if len(pair) != 2 or not characters.issuperset(token):
            raise ConfigError(
                f"{merges_path}: line {number} is not a merge (two pieces separated by a space): {line!r}"
            )
        known[token] = len(known)
    for token, rank in known.items():
        if encoder.get(token) != rank:
            raise ConfigError(
                f"{encoder_path}: {token!r} has id {encoder.get(token)}, but number {rank} in {merges_path.name}: the "
                "two files do not belong together, or the ids do not follow the merges. Use its tokenizer.json."
            )
    rest = {token: i for token, i in encoder.items() if token not in known}
    if list(rest) != [END_OF_DOCUMENT] or rest[END_OF_DOCUMENT] != len(known):
        raise ConfigError(
            f"{encoder_path}: besides the merges it must contain only {END_OF_DOCUMENT} with id {len(known)}, but it "
            f"has {dict(list(rest.items())[:5])}. Use its tokenizer.json."
        )
    latin = str.maketrans({character: chr(byte) for character, byte in byte_of.items()})
    ranks = {token.translate(latin).encode("latin-1"): rank for token, rank in known.items()}
    return _Vocabulary(ranks, rest[END_OF_DOCUMENT])


def _from_ranks(path: Path, content: bytes) -> _Vocabulary:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ConfigError(f"{path}: line {number} is not a base64 token and its rank: {line[:60]!r}") from None
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    lines = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ordered)
    found = _RANK_FILES.get(hashlib.sha256(lines).hexdigest())
    if found is None:
        names = " or ".join(name for name, _ in _RANK_FILES.values())
        raise ConfigError(
            f"{path} does not have the ranks of {names}. A rank file does not describe how text is split into words, "
            "so no other can be used. Use its tokenizer.json."
        )
    return _Vocabulary(ranks, found[1])


def _fingerprint(contents: Sequence[bytes]) -> str:
    """Return the SHA-256 of one file, as for the other tokenizers, or of both digests if there are two files."""
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
