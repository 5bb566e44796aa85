"""Cut long texts where no token can cross, so that encoding takes time and memory in proportion to a part, not a text.

Byte-pair encoding joins two neighbours only into a token of the vocabulary. If no token contains two characters next to
each other, no merge crosses the position between them. The tokens of the parts are then the tokens of the whole text.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

PART = 1 << 16  # characters of a part, at least
LONG = 2 * PART  # shorter texts are never cut
# Cut after this many characters without a safe position, as in 10^6 equal letters. The tokens at such a cut may differ
# from those of the whole text; the decoded text does not. In parts of 2^20, libraries need up to twice the time.
MAX_PART = 1 << 18

_NEAR = 1 << 14
_BLANK = re.compile(r"(?<!\s)\s")  # the first one of a run, since a run of a million takes seconds to try
_SPACE_MARK = "\u2581"  # sentencepiece's space

MayCut = Callable[[str, int], bool]


def cut_text(text: str, may_cut: MayCut) -> Iterator[str]:
    """Yield the parts of a text; `may_cut(text, i)` returns whether no token crosses the place before character i."""
    start = 0
    while len(text) - start > LONG:
        latest = min(start + MAX_PART, len(text))
        stop = next((i for i in _places(text, start + PART, latest) if may_cut(text, i)), latest)
        yield text[start:stop]
        start = stop
    if start < len(text) or not text:
        yield text[start:]


def _places(text: str, start: int, stop: int) -> Iterator[int]:
    """Yield the positions to try: all of the first ones, then those of blanks, so that long words cost little."""
    near = min(start + _NEAR, stop)
    yield from range(start, near)
    yield from (blank.start() for blank in _BLANK.finditer(text, near, stop))


def neighbours(tokens: Iterable[Sequence[Any]]) -> frozenset[tuple[Any, Any]]:
    """Return the pairs of adjacent characters (of bytes, if the tokens are bytes) that the tokens contain."""
    return frozenset(pair for token in tokens for pair in pairwise(token))


def encode_parts(
    texts: Sequence[str], encode: Callable[[list[str]], list[list[int]]], may_cut: MayCut | None
) -> list[npt.NDArray[np.int32]]:
    """Encode each text to an array (n,): the short ones in one call, a long one part by part."""
    short = [text for text in texts if may_cut is None or len(text) <= LONG]
    encoded = iter(encode(short)) if short else iter(())
    found = []
    for text in texts:
        if may_cut is None or len(text) <= LONG:
            found.append(np.array(next(encoded), dtype=np.int32))
        else:
            found.append(
                np.concatenate([np.array(encode([part])[0], dtype=np.int32) for part in cut_text(text, may_cut)])
            )
    return found


def between_pieces(model: Any) -> MayCut | None:
    """Return where texts of a sentencepiece model can be cut; None if it is no byte-pair model, or changes texts first.

    A byte-pair model scores its pieces by their order: 0, -1, -2 and so on.
    """
    ids = [i for i in range(model.vocab_size()) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]
    by_order = all(model.get_score(i).is_integer() for i in ids) and len({model.get_score(i) for i in ids}) > 1
    sample = "  a\ufb01  \uff21\tb\n "
    if not by_order or model.normalize(sample) != sample.replace(" ", _SPACE_MARK):
        return None
    inside = neighbours(map(model.id_to_piece, ids))

    def may_cut(text: str, at: int) -> bool:
        return tuple(text[at - 1 : at + 1].replace(" ", _SPACE_MARK)) not in inside

    return may_cut


def without_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate, which UTF-8 cannot represent."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
