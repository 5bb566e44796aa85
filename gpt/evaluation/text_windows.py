"""Read texts and token corpora as chunks of tokens, in order, with little of a long text in memory.

A text is cut only where the cut does not change its tokens, judged by the characters around the cut. Some tokenizers
allow no cut, for example if they put a space before every text. They get the text whole.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError, file_error
from gpt.files.regular import open_regular
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer

BLOCK_BYTES = 1 << 16  # read at a time
CONTEXT_CHARACTERS = 256  # on either side of a cut, encoded to see whether the cut changes the tokens
MAX_TRIES = 8  # cuts of a kind that are tried
# In this order: a line end between two non-space characters, where the vocabularies of GPT-2, Llama 3 and our own end a
# token; any line end; a space between words, which begins a token in all of them.
_CUTS = tuple(map(re.compile, (r"(?<=\S)\n(?=\S)", r"\n", r"(?<=\S)(?= \S)")))


@dataclass(frozen=True)
class TextChunk:
    """Consecutive tokens of a document, and the number of words and UTF-8 bytes of their text."""

    tokens: Sequence[int]
    words: int
    n_bytes: int


def text_chunks(path: Path, tokenizer: Tokenizer) -> Iterator[TextChunk]:
    """Read a text file as one document. Words are separated by white space.

    ConfigError: the file cannot be read or is not UTF-8. Memory: a few blocks, or the text if the tokenizer allows no
    cut.
    """
    for text in _cut_exactly(read_text(path), tokenizer):  # no cut is inside a word, so the words add up
        yield TextChunk(tokenizer.encode(text), len(text.split()), len(text.encode()))


def corpus_documents(file: TokenFile, tokenizer: Tokenizer) -> Iterator[list[TextChunk]]:
    """Read each document of a token corpus, without its end-of-document token. Skips empty documents.

    ConfigError: an id that the tokenizer does not have. Memory: one document.
    """
    stop = file.document_start(0) if file.n_documents else 0
    for document in range(file.n_documents):
        start, stop = stop, file.document_start(document + 1)
        ids = file.read(start, stop).astype(np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
            wrong = int(np.argmax((ids < 0) | (ids >= tokenizer.vocab_size)))
            raise ConfigError(
                f"{file.bin_path(start + wrong)}: token {start + wrong:,} is id {ids[wrong]}, but {tokenizer.name} has "
                f"ids 0 to {tokenizer.vocab_size - 1}. Use the tokenizer that made the corpus."
            )
        tokens = ids.tolist()
        if tokens and tokens[-1] == tokenizer.end_of_document_id:
            tokens.pop()
        if tokens:
            text = tokenizer.decode(tokens)
            yield [TextChunk(tokens, len(text.split()), len(text.encode(errors="replace")))]


def read_text(path: Path) -> Iterator[str]:
    """Read a text file block by block, with its line ends unchanged.

    ConfigError: the file cannot be read, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    block_start = 0
    try:
        with open_regular(path) as file:
            while True:
                block = file.read(BLOCK_BYTES)
                held = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"{path} is not UTF-8 text: {error.reason} at byte {block_start - held + error.start:,}. "
                        "Convert it with iconv, or give another file."
                    ) from None
                if text:
                    yield text
                if not block:
                    return
                block_start += len(block)
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _cut_exactly(blocks: Iterator[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Cut a text into parts that encode to the same tokens as the whole."""
    pending, min_length = "", 1
    for block in blocks:
        pending += block
        if len(pending) < min_length:
            continue
        cut = _last_exact_cut(pending, tokenizer)
        if cut:
            yield pending[:cut]
            pending, min_length = pending[cut:], 1
        else:
            min_length = 2 * len(pending)  # wait, so that a text without a cut is not searched again for every block
    if pending:
        yield pending


def _last_exact_cut(text: str, tokenizer: Tokenizer) -> int:
    """Return the last index where a cut does not change the tokens, or 0. It needs enough text after it to judge."""
    end = len(text) - CONTEXT_CHARACTERS
    for pattern in _CUTS:
        cuts = [match.end() for match in pattern.finditer(text, 0, max(0, end))][-MAX_TRIES:]
        for cut in reversed(cuts):
            left, right = text[max(0, cut - CONTEXT_CHARACTERS) : cut], text[cut : cut + CONTEXT_CHARACTERS]
            if tokenizer.encode(left) + tokenizer.encode(right) == tokenizer.encode(left + right):
                return cut
    return 0
