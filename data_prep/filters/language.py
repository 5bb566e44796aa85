"""Keep the documents in the wanted languages, which CLD2 or py3langid detects."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError, import_extra

# CLD2 rejects text with these characters; they say nothing about the language.
_NOT_TEXT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_MIN_PROBABILITY = 0.3  # py3langid's answers below this count as no language


@dataclass(frozen=True)
class LanguageConfig:
    """The [language] section of a recipe: which languages to keep."""

    enabled: bool = True
    """Whether to detect languages at all."""
    detector: Literal["cld2", "langid"] = "cld2"
    """`cld2`, or `langid` (py3langid), which is pure Python, knows 140 languages and is slower."""
    keep: tuple[str, ...] = ("en",)
    """ISO 639-1 codes as the detector gives them ("en", "de", "zh"). An empty list keeps all documents and only labels
    them."""
    min_share: float = 0.5
    """Minimum share of the text's bytes in the main language, 0 to 1."""
    keep_undetected: bool = False
    """Keep texts without a detected language: too short, or mostly symbols."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"language.min_share = {self.min_share} is invalid: must be between 0 and 1")


@dataclass(frozen=True)
class Language:
    """The main language of a text and the share of its bytes in it; code "" if none was detected."""

    code: str
    share: float


Detect = Callable[[str], Language]


def detector(name: Literal["cld2", "langid"]) -> Detect:
    """Return a deterministic function that detects the language of a whole text."""
    if name == "cld2":
        return detect
    langid: Any = import_extra("py3langid.langid", extra="data")
    return partial(_detect_by_langid, langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True))


def detect(text: str) -> Language:
    """Detect the language of a text by CLD2."""
    cld2: Any = import_extra("pycld2", extra="data")
    _, _, details = cld2.detect(_NOT_TEXT.sub(" ", text).encode(), bestEffort=True)
    _, code, percent, _ = details[0]
    return Language("", 0.0) if code == "un" else Language(code, percent / 100)


def _detect_by_langid(identifier: Any, text: str) -> Language:
    """Detect the language by py3langid. It gives one language per text, so ask for each piece to get the shares."""
    sizes: Counter[str] = Counter()
    for piece in _pieces(text):
        code, probability = identifier.classify(piece)
        sizes[code if probability >= _MIN_PROBABILITY else ""] += len(piece.encode("utf-8", "replace"))
    code, size = max(sizes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return Language(code, size / sizes.total()) if code else Language("", 0.0)


def _pieces(text: str) -> Iterator[str]:
    """Divide a text into at most 16 pieces of whole lines, of at least 500 characters except for the last."""
    min_size = max(500, len(text) // 16 + 1)
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= min_size:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def drop_reason(found: Language, config: LanguageConfig) -> str | None:
    """Return the reason to drop a document in this language, or None."""
    if not config.keep:
        return None
    if not found.code:
        return None if config.keep_undetected else "undetected"
    if found.code not in config.keep:
        return "other_language"
    return None if found.share >= config.min_share else "mixed_languages"


def filter_languages(config: LanguageConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (shard, trace), with `language` and `language_share` added to the metadata.

    Facts: `languages`, documents by language before the filter.
    """
    languages: Counter[str] = Counter()
    find = detector(config.detector)
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("language", inputs, outputs) as quarantine,
    ):
        tally = Tally("language", trace)
        for document, found in quarantine.each(read_shard(inputs[0]), lambda document: find(document.text), tally):
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
    """Return the stage; its version depends only on the library of the chosen detector."""
    if config.detector == "cld2":
        return LANGUAGE
    return replace(LANGUAGE, packages=("numpy",), ignored_packages=("pycld2",))  # py3langid computes with numpy


LANGUAGE = Stage("language", filter_languages, ignored_packages=("py3langid",))
