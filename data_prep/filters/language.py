"""The language stage: keeps documents in the wanted languages, by CLD2 or py3langid; never translates or trims."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_prep.documents.counts import Tally
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError, import_extra

# CLD2 refuses text with these, which say nothing about the language.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_LEAST_PROBABILITY = 0.3  # of py3langid's answer, below which it is taken for none


@dataclass(frozen=True)
class LanguageConfig:
    """Section [language]: which languages stay.

    `keep` lists ISO 639-1 codes as the detector gives them ("en", "de", "zh"); an empty list keeps all and only labels
    them. `min_share` is the least share of the text's bytes, 0 to 1, that must be in the first language found. Text in
    which no language is found (too short, mostly symbols) is dropped as `undetected` unless `keep_undetected`.
    `detector`: "cld2", or "langid" (py3langid), which is pure Python, knows 140 languages and is slower.
    """

    enabled: bool = True
    detector: Literal["cld2", "langid"] = "cld2"
    keep: tuple[str, ...] = ("en",)
    min_share: float = 0.5
    keep_undetected: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"language.min_share = {self.min_share} must lie between 0 and 1")


@dataclass(frozen=True)
class Language:
    """The first language of a text and the share of its bytes in it; code "" when none was found."""

    code: str
    share: float


Detect = Callable[[str], Language]


def detector(name: Literal["cld2", "langid"]) -> Detect:
    """A function that finds the language of a text, from all of it; the same text always gives the same answer."""
    if name == "cld2":
        return detect
    langid: Any = import_extra("py3langid.langid", extra="data")
    return partial(_detect_by_langid, langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True))


def detect(text: str) -> Language:
    """The language of a text by CLD2."""
    cld2: Any = import_extra("pycld2", extra="data")
    try:
        _, _, details = cld2.detect(_NOT_TEXT.sub(" ", text).encode(), bestEffort=True)
    except cld2.error:  # a character that CLD2's own UTF-8 check does not allow
        printable = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
        _, _, details = cld2.detect(printable.encode(), bestEffort=True)
    _, code, percent, _ = details[0]
    return Language("", 0.0) if code == "un" else Language(code, percent / 100)


def _detect_by_langid(identifier: Any, text: str) -> Language:
    """By py3langid, which gives one language to a text: asked for parts of it, to see the share of each."""
    sizes: Counter[str] = Counter()
    for piece in _pieces(text):
        code, probability = identifier.classify(piece)
        sizes[code if probability >= _LEAST_PROBABILITY else ""] += len(piece.encode("utf-8", "replace"))
    code, size = max(sizes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return Language(code, size / sizes.total()) if code else Language("", 0.0)


def _pieces(text: str) -> Iterator[str]:
    """A text in at most 16 pieces of whole lines, none but the last shorter than 500 characters."""
    least = max(500, len(text) // 16 + 1)
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= least:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def drop_reason(found: Language, config: LanguageConfig) -> str | None:
    """Why a document in this language goes, or None."""
    if not config.keep:
        return None
    if not found.code:
        return None if config.keep_undetected else "undetected"
    if found.code not in config.keep:
        return "other_language"
    return None if found.share >= config.min_share else "mixed_languages"


def filter_languages(config: LanguageConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (shard, trace), with `language` and `language_share` added to the metadata.

    Facts: `languages`, documents by language before any is dropped.
    """
    languages: Counter[str] = Counter()
    find = detector(config.detector)
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally("language", trace)
        for document in read_shard(inputs[0]):
            found = find(document.text)
            languages[found.code or "undetected"] += 1
            reason = drop_reason(found, config)
            if reason is not None:
                tally.drop(reason, document.n_bytes, document.id, detail=f"{found.code} {found.share:.2f}")
                continue
            tally.keep(document.n_bytes, document.n_bytes)
            added = {"language": found.code or "undetected", "language_share": found.share}
            write(Document(document.id, document.text, {**document.metadata, **added}))
    return TaskResult([tally.counts()], {"languages": dict(sorted(languages.items()))})


def language_stage(config: LanguageConfig) -> Stage:
    """The stage, which depends on the library of the chosen detector only."""
    if config.detector == "cld2":
        return LANGUAGE
    return replace(LANGUAGE, packages=("numpy",), ignored_packages=("pycld2",))  # py3langid computes with numpy


LANGUAGE = Stage("language", filter_languages, ignored_packages=("py3langid",))
