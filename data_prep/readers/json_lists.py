"""Read a file that is one JSON list, element by element, such as Alpaca's alpaca_data.json."""

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from data_prep.readers.compressed import Gap

_BLANK = " \t\r\n"


class BrokenList(Exception):
    """The list cannot be read on: `reason` of the drop, and the number of characters that are left in memory."""

    def __init__(self, reason: str, n_left: int) -> None:
        super().__init__(f"{reason}: {n_left} characters are left")
        self.reason, self.n_left = reason, n_left


def is_list(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is a JSON list."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def list_elements(blocks: Iterable[bytes | Gap], *, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """Yield (element, its characters). Memory: an element of at most `max_bytes` characters, a few times.

    BrokenList: the text is no list (`malformed`), ends early (`truncated`), has a damaged part, or an element is longer
    (`too_large`). Nothing can be read behind such a place.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")("replace").decode
    text, at, tried, is_begun = "", 0, 0, False
    for block in chain(blocks, [b""]):
        if isinstance(block, Gap):
            raise BrokenList(block.reason, len(text) - at)
        text, at = text[at:] + decode(block, final=not block), 0
        if not is_begun:
            text = text.lstrip(_BLANK)
            is_begun, text = bool(text), text.removeprefix("[")
        # After a failure, wait until there is twice as much: an element in many blocks takes linear time.
        while len(text) - at >= 2 * tried or not block:
            at = _skip(text, at, _BLANK + ",")
            if text[at : at + 1] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, at)
            except RecursionError:
                raise BrokenList("malformed", len(text) - at) from None
            except ValueError:
                tried = len(text) - at
                break
            after = _skip(text, end, _BLANK)
            if text[after : after + 1] not in (",", "]"):  # a number may go on in the next block
                tried = len(text) - at
                break
            if end - at > max_bytes:
                raise BrokenList("too_large", len(text) - at)
            yield value, end - at
            at, tried = end, 0
        if len(text) - at > max_bytes:
            raise BrokenList("too_large", len(text) - at)
    raise BrokenList("truncated", len(text) - at)


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
