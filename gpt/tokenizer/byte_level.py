"""Long texts of a byte-level tokenizer.json by tiktoken, which needs a fraction of the time of `tokenizers`.

`tokenizers` keeps the positions of each character and a string for each piece: up to a microsecond for a byte. The
tokens are the same if the file describes plain byte pairs, GPT-2's rule for words, and merges in the order in which
training found them. Then each token comes from one pair only, and joining the pair with the best token, as tiktoken
does, joins the pair of the best merge, as `tokenizers` does.
"""

import functools
import re
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.tokenizer.byte_pair import printable_bytes
from gpt.tokenizer.long_texts import LONG, without_surrogates
from gpt.tokenizer.pairs import WORDS, WORDS_AND_DIGITS, BytePairs

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_PLAIN = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


class LongTexts:
    """Encodes the long texts of a `tokenizers.Tokenizer`; its vocabulary is read at the first one."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, text: str) -> npt.NDArray[np.int32] | None:
        """Encode a long text as an array (n,). None: it is short, or only `tokenizers` knows its tokens."""
        if len(text) <= LONG or self._pairs is None:
            return None
        clean = without_surrogates(text)
        return self._pairs.encode(clean) if self._pairs.takes(clean) else None

    @functools.cached_property
    def _pairs(self) -> "ByteLevelPairs | None":
        return byte_level_pairs(self._model)


class ByteLevelPairs:
    """The vocabulary of a tokenizer.json in tiktoken. `ids` (ranks,): the id of each rank, -1 if it is `missing`."""

    def __init__(self, pairs: BytePairs, ids: npt.NDArray[np.int32], missing: bytes) -> None:
        self._pairs, self._ids = pairs, ids
        self._present = bytes(set(range(256)) - set(missing))

    def takes(self, text: str) -> bool:
        """Return whether the tokens are certain: the vocabulary has each byte, and no character's class has changed.

        Each library has tables of another version of Unicode, so they may split newer characters differently.
        """
        if not text.isascii() and _newer_characters().search(text):
            return False
        return not text.encode().translate(None, delete=self._present)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Encode a text that `takes` accepts as an array (n,)."""
        found: npt.NDArray[np.int32] = self._ids[self._pairs.encode_array(text)]
        return found


def byte_level_pairs(model: Any) -> ByteLevelPairs | None:
    """Return the vocabulary of a `tokenizers.Tokenizer`; None if it is of another kind, or tiktoken is missing.

    Takes a second for 50,000 tokens.
    """
    file = decode_json(model.to_str())
    words, vocabulary = _words(file), file["model"].get("vocab")
    if words is None or any(file["model"].get(key) for key in _PLAIN):
        return None
    if len(model.get_vocab(with_added_tokens=False)) != len(vocabulary):
        return None  # tokens that share an id: a merge of one also applies to the other, and `to_str` names only one
    byte_of = printable_bytes()
    ranks = {character: rank for rank, character in enumerate(byte_of)}  # bytes first, then the merges in order
    for merge in file["model"]["merges"]:
        first, second = merge if isinstance(merge, list) else merge.split(" ")
        token = first + second
        if first not in ranks or second not in ranks or token in ranks:
            return None
        if [found.value for found in model.model.tokenize(token)] != [token]:  # training did not find this merge
            return None
        ranks[token] = len(ranks)
    latin = str.maketrans({character: chr(byte) for character, byte in byte_of.items()})
    try:
        pairs = BytePairs(
            "byte-level", {t.translate(latin).encode("latin-1"): r for t, r in ranks.items()}, words=words
        )
    except ConfigError:
        return None
    ids = np.array([vocabulary.get(token, -1) for token in ranks], dtype=np.int32)
    return ByteLevelPairs(pairs, ids, bytes(byte for character, byte in byte_of.items() if character not in vocabulary))


def _words(file: dict[str, Any]) -> str | None:
    """Return the rule that splits a text; None if the file has another than the two that are known."""
    if file["model"]["type"] != "BPE" or file["normalizer"] or any(not one["special"] for one in file["added_tokens"]):
        return None
    split = file["pre_tokenizer"] or {}
    steps = split["pretokenizers"] if split.get("type") == "Sequence" else [split]
    known = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if known == [_BYTE_LEVEL]:
        return WORDS
    return WORDS_AND_DIGITS if known == [_DIGITS, _BYTE_LEVEL] else None


@functools.cache
def _newer_characters() -> re.Pattern[str]:
    """Match characters that Unicode 3.2 lacks, or whose class has changed since."""
    old = unicodedata.ucd_3_2_0
    ranges: list[list[int]] = []
    for code in range(0x110000):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "Cn" or old.category(character) != kind:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return re.compile(f"[{''.join(f'{re.escape(chr(a))}-{re.escape(chr(b))}' for a, b in ranges)}]")
