"""Convert text to token ids and back with sentencepiece, GPT-2 or Hugging Face files. Nothing is downloaded."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError, import_extra
from gpt.files.atomic import open_replacement
from gpt.files.regular import read_bytes
from gpt.tokenizer.byte_level import LongTexts
from gpt.tokenizer.byte_pair import END_OF_DOCUMENT, BytePairTokenizer
from gpt.tokenizer.faults import library_faults
from gpt.tokenizer.long_texts import LONG, between_pieces, encode_parts, without_surrogates

_END_NAMES = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>", "<eos>")  # of GPT-2, Llama 2, Llama 3 and Gemma
_SPACE_MARK = "\u2581"  # sentencepiece writes a space as this character; the character itself is a special case
_NEAR = 256  # characters on each side of a cut, to compare its tokens
_MAX_LINE = 4000  # characters in a training sentence; pieces have a few characters, so cutting is harmless
# GPT-2's pair of files (token ids, merges) as OpenAI and as Hugging Face name it. A name may have a prefix.
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of all tokenizers. Ids are 0..vocab_size-1."""

    name: str
    vocab_size: int
    end_of_document_id: int
    fingerprint: str  # sha256 of the tokenizer's files

    def encode(self, text: str) -> list[int]:
        """Encode a text without an end-of-document token. The text `<|endoftext|>` is encoded as plain characters."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text."""
        ...

    def encode_arrays(self, texts: Sequence[str]) -> Sequence[npt.NDArray[Any]]:
        """Encode each text as an array of integers (n,), which may be read-only."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids. Bytes that are not complete UTF-8 characters become U+FFFD."""
        ...


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a file, pair of files or folder, as `tokenizer_files` describes.

    ConfigError: a file is missing or unreadable, it has no end-of-document token, or an optional package is missing.
    """
    files = tokenizer_files(path)
    if len(files) == 2 or files[0].suffix == ".tiktoken":
        return BytePairTokenizer(files)
    return SentencePieceTokenizer(files[0]) if files[0].suffix == ".model" else HuggingFaceTokenizer(files[0])


def tokenizer_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a tokenizer: one file, or GPT-2's pair (encoder.json, vocab.bpe).

    `path` is a sentencepiece `.model`, a Hugging Face `tokenizer.json`, one of OpenAI's `.tiktoken` rank files, either
    file of the pair (also under Hugging Face's names vocab.json and merges.txt), or a folder that contains one of
    these, such as a corpus. ConfigError: there is no tokenizer, or a folder contains several.
    """
    path = Path(path)
    if path.is_dir():
        endings = (".model", "tokenizer.json", ".tiktoken", *(merges for _, merges in _PAIRS))
        found = sorted(file for file in path.iterdir() if file.name.endswith(endings) and file.is_file())
        if len(found) != 1:
            holds = f"has {', '.join(file.name for file in found)}. Name one" if found else "has none"
            raise ConfigError(
                f"{path} is invalid: a tokenizer folder must contain exactly one tokenizer, but this one {holds}"
            )
        path = found[0]
    files: tuple[Path, ...] = (path,)
    for pair in _PAIRS:
        for own in pair:
            if path.name.endswith(own):
                files = tuple(path.with_name(path.name.removesuffix(own) + name) for name in pair)
    if path.suffix not in (".model", ".json", ".tiktoken") and len(files) == 1:
        raise ConfigError(
            f"{path} is not a tokenizer. Use a sentencepiece .model, a Hugging Face tokenizer.json, a .tiktoken rank "
            "file or the pair encoder.json and vocab.bpe."
        )
    for file in files:
        if not file.is_file():
            location = f" next to {path.name}" if file != path and path.is_file() else ""
            raise ConfigError(f"{file}: no such tokenizer file{location}")
    return files


class SentencePieceTokenizer:
    """A sentencepiece model. With models from `train_sentencepiece`, decode(encode(text)) == text."""

    def __init__(self, path: Path) -> None:
        import sentencepiece  # takes 40 ms, and only some commands need it

        data = read_bytes(path)
        with library_faults(f"{path}: not a sentencepiece model"):
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
            self.vocab_size: int = self._model.vocab_size()
            pieces = {name: self._model.piece_to_id(name) for name in _END_NAMES}
            unknown = self._model.unk_id()
            known = [i for name, i in pieces.items() if i != unknown and self._model.id_to_piece(i) == name]
            mark = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
            self._mark_ids: list[int] = mark if unknown not in mark else []
            self._may_cut = between_pieces(self._model)
        self.name = path.name
        self.fingerprint = hashlib.sha256(data).hexdigest()
        if not known:
            raise ConfigError(f"{path}: no end-of-document piece. Expected one of {', '.join(_END_NAMES)}")
        self.end_of_document_id: int = known[0]

    def encode(self, text: str) -> list[int]:
        """Encode a text. A lone surrogate, which UTF-8 cannot represent, is read as U+FFFD."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text on the caller's thread."""
        if max(map(len, texts), default=0) <= LONG:
            return self._encode(texts)
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Encode each text as an array (n,)."""
        return encode_parts(texts, self._encode, self._may_cut)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [without_surrogates(text) for text in texts]
        with library_faults(f"{self.name} cannot encode a text"):
            ids: list[list[int]] = self._model.encode(clean, num_threads=1)
            if not self._mark_ids:
                return ids
            # U+2581 would be decoded as a space. Encoded as its three bytes it is decoded as itself.
            return [self._encode_marked(text) if _SPACE_MARK in text else i for text, i in zip(clean, ids, strict=True)]

    def _encode_marked(self, text: str) -> list[int]:
        first, *rest = self._model.encode(text.split(_SPACE_MARK), num_threads=1)
        return [*first, *(i for part in rest for i in (*self._mark_ids, *part))]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids. The end-of-document token is left out. ConfigError: an id is outside the vocabulary."""
        _check_ids(ids, self)
        with library_faults(f"{self.name} cannot decode token ids"):
            return str(self._model.decode([int(i) for i in ids]))


class HuggingFaceTokenizer:
    """A `tokenizer.json`, run by the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        tokenizers = import_extra("tokenizers", extra="hf")
        data = read_bytes(path)
        with library_faults(f"{path}: not a Hugging Face tokenizer file"):
            self._model = tokenizers.Tokenizer.from_buffer(data)
            self._model.encode_special_tokens = True  # a page with the text <|endoftext|> must not end its document
            self._model.no_padding()
            self._model.no_truncation()
            self._long_texts = LongTexts(self._model)
            # This is not the number of tokens: some files skip ids, and others give two tokens the same id.
            self.vocab_size: int = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            known = [i for name in _END_NAMES if (i := self._model.token_to_id(name)) is not None]
            added = self._model.get_added_tokens_decoder().items()
            self.special_names: dict[int, str] = {i: token.content for i, token in added if token.special}
        self.name = path.name
        self.fingerprint = hashlib.sha256(data).hexdigest()
        if not known:
            raise ConfigError(f"{path}: no end-of-document token. Expected one of {', '.join(_END_NAMES)}")
        self.end_of_document_id: int = known[0]

    def encode(self, text: str) -> list[int]:
        """Encode a text without the special tokens that a template would add."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text."""
        if max(map(len, texts), default=0) <= LONG:
            return self._encode(texts)
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Encode each text as an array (n,): a long one by tiktoken, where the tokens are the same for certain."""
        long = [self._long_texts.encode(text) for text in texts]
        rest = [text for text, ids in zip(texts, long, strict=True) if ids is None]
        others = iter(encode_parts(rest, self._encode, self._may_cut if self._adds_nothing else None))
        return [next(others) if ids is None else ids for ids in long]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [without_surrogates(text) for text in texts]
        with library_faults(f"{self.name} cannot encode a text"):
            return [encoding.ids for encoding in self._model.encode_batch_fast(clean, add_special_tokens=False)]

    @cached_property
    def _adds_nothing(self) -> bool:
        """Return whether the model adds nothing to a text, as some do to its start: such a text must stay whole."""
        whole, *parts = self._encode(["some words a b", "some words", " a", " b"])
        return whole == [i for part in parts for i in part]

    def _may_cut(self, text: str, at: int) -> bool:
        """Return whether the text near a blank is encoded as its two parts are; the file may hold any rule."""
        if text[at] != " " or text[at - 1].isspace() or not text[at + 1 : at + 2].isalpha():
            return False
        before, after = text[at - _NEAR : at], text[at : at + _NEAR]
        whole, first, second = self._encode([before + after, before, after])
        return whole == first + second

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids. Special tokens are left out. ConfigError: an id is outside the vocabulary."""
        _check_ids(ids, self)
        with library_faults(f"{self.name} cannot decode token ids"):
            return str(self._model.decode([int(i) for i in ids], skip_special_tokens=True))


def train_sentencepiece(
    texts: Iterator[str], out: Path, *, vocab_size: int, character_coverage: float = 0.9995, longest_piece: int = 16
) -> None:
    """Train a byte-pair vocabulary of exactly `vocab_size` pieces on `texts` and write it to `out`.

    The vocabulary is reversible: rare characters are encoded as bytes, text is neither normalised nor trimmed, digits
    are single pieces, and no piece contains a control character, so that a newline or a tab is always one byte piece.
    Piece 0 is `<unk>` (never produced), piece 1 is `<|endoftext|>`.

    `character_coverage`: share of the text's characters that get a piece. `longest_piece`: in characters. The same
    texts in the same order give the same file. Memory: several times the text. ConfigError: the text cannot fill the
    vocabulary, or the vocabulary is too small for the text's characters.
    """
    import sentencepiece

    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts),
            model_writer=buffer,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            max_sentencepiece_length=longest_piece,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation becomes one piece
            split_digits=True,
            control_symbols=[END_OF_DOCUMENT],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _MAX_LINE,
            num_threads=1,  # written into the model, so it must not depend on the machine
            minloglevel=3,
        )
    except RuntimeError as error:
        raise ConfigError(_training_error(str(error), vocab_size)) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_replacement(out, durable=True) as file:
        file.write(buffer.getvalue())


def _training_lines(texts: Iterator[str]) -> Iterator[str]:
    """Split texts at control characters: sentencepiece reserves tab and NUL, and reads line by line."""
    for text in texts:
        for line in re.split(r"[\x00-\x1f\x7f\u2581]+", without_surrogates(text)):
            for start in range(0, len(line), _MAX_LINE):
                yield line[start : start + _MAX_LINE]


def _training_error(message: str, vocab_size: int) -> str:
    if found := re.search(r"value <= (\d+)", message):
        return (
            f"tokenizer: vocab_size = {vocab_size} is invalid: this text fills at most {found[1]} pieces. Use "
            f"vocab_size = {found[1]} or more text."
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"tokenizer: vocab_size = {vocab_size} is invalid: the text's characters and the 256 bytes need {found[1]} "
            f"pieces. Use a vocab_size above {found[1]} or a lower character_coverage."
        )
    if "sentences_.empty()" in message:
        return "tokenizer: there is no text to train on"
    return f"tokenizer: sentencepiece could not train {vocab_size} pieces: {message}"


def _check_ids(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    for i in ids:
        if not 0 <= int(i) < tokenizer.vocab_size:
            raise ConfigError(f"token id {int(i)} is outside the {tokenizer.vocab_size} pieces of {tokenizer.name}")
