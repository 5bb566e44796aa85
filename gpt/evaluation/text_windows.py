"""Texts and token corpora as pieces of tokens, in order, for a model to predict; holds little of a long one at a time.

A text is cut where the tokenizer gives the parts the ids that it gives the whole, as far as the characters around the
cut tell; a tokenizer that has no such place, such as one that puts a space before every text, gets the text whole.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer

BLOCK_BYTES = 1 << 16  # read at a time
AROUND = 256  # characters on either side of a cut that are encoded to see whether it changes anything
TRIES = 8  # places of a kind that are tried
# A line's end between two characters that are no space, where GPT-2's, Llama 3's and our own vocabularies end a piece;
# then any line's end; then a space between words, which begins a piece in all of them.
_PLACES = tuple(map(re.compile, (r"(?<=\S)\n(?=\S)", r"\n", r"(?<=\S)(?= \S)")))


@dataclass(frozen=True)
class TextChunk:
    """Consecutive tokens of a document, and the words and bytes of their text."""

    tokens: Sequence[int]
    words: int
    n_bytes: int  # in UTF-8


def text_chunks(path: Path, tokenizer: Tokenizer) -> Iterator[TextChunk]:
    """A text file as one document. Words are what white space separates.

    ConfigError: it cannot be read or is not UTF-8. Memory: a few blocks, unless the tokenizer needs the text whole.
    """
    for text in _exact_cuts(read_text(path), tokenizer):  # which never cuts a word, so the words add up
        yield TextChunk(tokenizer.encode(text), len(text.split()), len(text.encode()))


def corpus_documents(file: TokenFile, tokenizer: Tokenizer) -> Iterator[list[TextChunk]]:
    """Each document of a token corpus without the end-of-document token that closes it; empty ones are left out.

    ConfigError: an id that the tokenizer does not have. Memory: one document.
    """
    stop = file.document_start(0) if file.n_documents else 0
    for document in range(file.n_documents):
        start, stop = stop, file.document_start(document + 1)
        ids = file.read(start, stop).astype(np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
            place = int(np.argmax((ids < 0) | (ids >= tokenizer.vocab_size)))
            raise ConfigError(
                f"{file.bin_path(start + place)}: token {start + place:,} is id {ids[place]}, but {tokenizer.name} has "
                f"ids 0 to {tokenizer.vocab_size - 1}; the corpus was made with another tokenizer"
            )
        tokens = ids.tolist()
        if tokens and tokens[-1] == tokenizer.end_of_document_id:
            tokens.pop()
        if tokens:
            text = tokenizer.decode(tokens)
            yield [TextChunk(tokens, len(text.split()), len(text.encode(errors="replace")))]


def read_text(path: Path) -> Iterator[str]:
    """The text of a file in parts as they come, line ends as they are. ConfigError: unreadable, or not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    try:
        with open(path, "rb") as file:
            while True:
                block = file.read(BLOCK_BYTES)
                held = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"{path} is not UTF-8 text: {error.reason} at byte {at - held + error.start:,}; convert it "
                        "first (iconv), or give text"
                    ) from None
                if text:
                    yield text
                if not block:
                    return
                at += len(block)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _exact_cuts(blocks: Iterator[str], tokenizer: Tokenizer) -> Iterator[str]:
    """The same text, in parts that may be encoded by themselves."""
    held, wanted = "", 1
    for block in blocks:
        held += block
        if len(held) < wanted:
            continue
        place = _place_to_cut(held, tokenizer)
        if place:
            yield held[:place]
            held, wanted = held[place:], 1
        else:
            wanted = 2 * len(held)  # so that a text without such a place is not searched again for every block
    if held:
        yield held


def _place_to_cut(text: str, tokenizer: Tokenizer) -> int:
    """The last place that will do and has enough text behind it to tell; 0 where there is none."""
    end = len(text) - AROUND
    for pattern in _PLACES:
        places = [found.end() for found in pattern.finditer(text, 0, max(0, end))][-TRIES:]
        for place in reversed(places):
            left, right = text[max(0, place - AROUND) : place], text[place : place + AROUND]
            if tokenizer.encode(left) + tokenizer.encode(right) == tokenizer.encode(left + right):
                return place
    return 0
