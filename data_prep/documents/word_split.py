"""Split text into words and count sentences, by spaCy's rules for English; there is no model and no other language.

The published filters count words, and the border between words and punctuation changes their ratios (share of words
with a letter, lines per word, repeated n-grams). datatrove, which made FineWeb, uses spaCy's English tokenizer. This
file follows the rules that spaCy documents: split at blanks, strip prefixes and suffixes, keep exceptions whole, split
at infixes. It leaves out emoticons, contractions without their apostrophe, and units in other scripts.
"""

import re
import string
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

_ALL_MARKS = ",:;!?()[]{}<>_#*&'\"`…¿¡؟。？！，、；：～·।،۔؛٪”“‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧—–"
_MARKS = re.escape(_ALL_MARKS)
_CURRENCIES = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = (
    "km[²³]?|[dcm]?m[²³]?|ha|[µn]m|yd|in|ft|kg|[mµ]?g|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|mbar|[mkgt]b|[MKGT]B|[TGMK]|%"
)
_PREFIX = re.compile(rf"\.\.+|\+(?![0-9])|(?:US|C|A)\$|[§%={_MARKS}{_CURRENCIES}]")
_SUFFIX = re.compile(rf"(?:\.\.+|[{_MARKS}]|['’][sS]|(?<=[0-9])(?:\+|[{_CURRENCIES}]|{_UNITS}))$")
_MAX_SUFFIX = 8  # characters of the longest suffix other than dots, with the digit before it
_LETTER = r"[^\W\d_]"
_QUOTES = "'\"”“`‘´’‚„»«"
_INFIX = re.compile(
    rf"\.\.+|[…\ufffd]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[a-zß-öø-ÿ{_QUOTES}])\.(?=[A-ZÀ-ÖØ-Þ{_QUOTES}])"
    rf"|(?<={_LETTER}),(?={_LETTER})|(?<=[^\W_])(?:——|---?|[-–—~])(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER})"
)
_ADDRESS = re.compile(
    r"(?:(?:(?:https?|ftp|ssh|git|file)://)?(?:[\w-]+\.)+[a-z]{2,}(?::\d+)?(?:[/?#]\S*)?|[^\s/@:]+@[^\s/@]+\.[a-z]{2,})"
)
_MAX_ADDRESS = 2000
_WHOLE = frozenset(
    """Adm. Apr. Aug. Bros. Calif. Co. Corp. D.C. Dec. Dr. E.g. Feb. Gen. Gov. I.e. Ind. Inc. Jan. Jr. Jul. Jun. Ltd.
    Mar. Messrs. Minn. Mr. Mrs. Ms. Mt. N.C. N.J. N.Y. Nov. Oct. Ph.D. Prof. Rep. Rev. Sen. Sep. Sept. St. Va. a.m. co.
    e.g. i.e. p.m. v.s. vs. and/or w/o ma'am ma’am o'clock o’clock 's ’s 'S ’S 'll ’ll 're ’re 'd ’d 'em ’em '' ’’
    a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z.""".split()  # noqa: SIM905  a list would take a line for each
)
_JOINED = {word: (word[:3], word[3:]) for word in ("cannot", "Cannot", "gonna", "Gonna", "gotta", "Gotta")}
_NEGATED = re.compile(r"([A-Za-z][a-z]*)(n['’]t)(['’]ve)?")
_SHORTENED = re.compile(
    r"((?:[Ii]|[Yy]ou|[Hh]e|[Ss]he|[Ii]t|[Ww]e|[Tt]hey|[Ww]h(?:o|at|en|ere|y)|[Hh]ow|[Tt]h(?:ere|at|is|[eo]se))"
    r"|(?:[Cc]o|[Ss]ho|[Ww]o)uld|[Mm]ight|[Mm]ust)(['’](?:d|ll|re|ve|m|s))(['’]ve)?"
)
_MAX_SPECIAL = 20
_CACHE_SIZE = 1 << 16  # cached splits of text between blanks; web text repeats it, so most is split once
_MAX_CACHED = 100  # characters


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, in order; joined, they are the text without its blanks."""
    pieces = text.split()
    if max(map(len, pieces), default=0) <= _MAX_CACHED:
        return list(chain.from_iterable(map(_split_cached, pieces)))
    short = _MAX_CACHED
    return [word for piece in pieces for word in (_split_cached if len(piece) <= short else _split_piece)(piece)]


def count_sentences(words: Iterable[str]) -> int:
    """Count the sentences in a line of these words, at least 1; one begins at the first word after an end mark."""
    count, ended = 1, False
    for word in words:
        if word in SENTENCE_ENDS:
            ended = True
        elif ended and not unicodedata.category(word[0]).startswith("P"):
            count, ended = count + 1, False
    return count


def _split_piece(piece: str) -> tuple[str, ...]:
    """Split text without blanks into its words. Linear in its length, even for a million brackets."""
    if piece.isalpha():
        return _JOINED.get(piece) or (piece,)
    word, mark = piece[:-1], piece[-1]
    ends_word = mark in _ALL_MARKS or (mark == "." and word[-1:].islower())
    if ends_word and word.isalpha() and word not in _JOINED and piece not in _WHOLE:  # "word," and "word."
        return word, mark
    front: list[str] = []
    back: list[str] = []
    start, stop = 0, len(piece)
    while start < stop:
        middle = _unsplit(piece, start, stop)
        if middle:
            return (*front, *middle, *reversed(back))
        if width := _prefix_length(piece, start, stop):
            front.append(piece[start : start + width])
            start += width
        elif width := _suffix_length(piece, start, stop):
            back.append(piece[stop - width : stop])
            stop -= width
        else:
            return (*front, *_split_inside(piece[start:stop]), *reversed(back))
    return (*front, *reversed(back))


_split_cached = lru_cache(_CACHE_SIZE)(_split_piece)


def _unsplit(piece: str, start: int, stop: int) -> tuple[str, ...] | None:
    """Words of a mark, an abbreviation or a contraction; None for anything else."""
    if stop - start == 1:
        return (piece[start:stop],)
    if stop - start <= _MAX_SPECIAL:
        word = piece[start:stop]
        if word in _WHOLE:
            return (word,)
        if word in _JOINED:
            return _JOINED[word]
        if "'" in word or "’" in word:
            found = _NEGATED.fullmatch(word) or _SHORTENED.fullmatch(word)
            if found:
                return tuple(part for part in found.groups() if part)
    return None


def _prefix_length(piece: str, start: int, stop: int) -> int:
    """Characters of the prefix, 0 if there is none."""
    found = _PREFIX.match(piece, start, stop)
    if found:
        return found.end() - start
    return int(_is_icon(piece[start]))


def _suffix_length(piece: str, start: int, stop: int) -> int:
    """Characters of the suffix, 0 if there is none. A dot stays on a capital letter unless another precedes that."""
    if piece[stop - 1] == ".":
        dots = stop - start - len(piece[start:stop].rstrip("."))
        if dots > 1:
            return dots
        before = piece[max(start, stop - 3) : stop - 1]
        return int(not before[-1:].isupper() or before[:-1].isupper())
    found = _SUFFIX.search(piece, max(start, stop - _MAX_SUFFIX), stop)
    if found and found.start() > start:
        return stop - found.start()
    return int(_is_icon(piece[stop - 1]))


def _split_inside(middle: str) -> list[str]:
    """Split text without prefixes and suffixes at its infixes; an address stays whole."""
    if len(middle) <= _MAX_ADDRESS and _ADDRESS.fullmatch(middle):
        return [middle]
    parts: list[str] = []
    at = 0
    for found in _INFIX.finditer(middle):
        if found.start() > at:
            parts.append(middle[at : found.start()])
        parts.append(found[0])
        at = found.end()
    if at < len(middle):
        parts.append(middle[at:])
    return parts


def _is_icon(character: str) -> bool:
    return character > "\x7f" and character != "°" and unicodedata.category(character) == "So"


def _characters(ranges: str) -> frozenset[str]:
    """Characters of hexadecimal code points, given singly or as first-last."""
    ends = ((int(first, 16), int(last or first, 16)) for first, _, last in (r.partition("-") for r in ranges.split()))
    return frozenset(chr(code) for first, last in ends for code in range(first, last + 1))


# Unicode's property Sentence_Terminal (PropList.txt, version 15), plus the Khmer signs U+17D6, U+17D9 and U+17DA as in
# datatrove, minus a few marks that were added late or are presentation forms.
SENTENCE_ENDS = _characters(
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 "
    "17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 "
    "2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB "
    "FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 "
    "111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 "
    "1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 "
    "16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
# datatrove's Gopher filter does not count a word that holds only these: control characters except tab and newline, and
# the marks beyond ASCII that cc_net listed and no others (so a lone bullet, § or © is a word).
SYMBOLS = (
    SENTENCE_ENDS
    | frozenset(string.punctuation)
    | _characters("0-8 B-1F 7F-9F AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA")
    | _characters("3001-3002 3008-300B 300C-300D 3010-3011 FF01 FF05 FF08-FF09 FF0C FF0E FF11 FF1A-FF1B FF1F FF5E")
)
