"""The language stage: keeps documents in the wanted languages, found by CLD2; never translates or trims."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.counts import Tally
from data_prep.documents import Document, read_shard, write_shard
from data_prep.engine import Result, Stage
from data_prep.traces import write_trace
from gpt.errors import ConfigError, import_extra

# CLD2 refuses text with these, which say nothing about the language.
_NOT_TEXT = dict.fromkeys((*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF), " ")


@dataclass(frozen=True)
class LanguageConfig:
    """Section [language]: which languages stay.

    `keep` lists ISO 639-1 codes as CLD2 gives them ("en", "de", "zh"); an empty list keeps all and only labels them.
    `min_share` is the least share of the text's bytes, 0 to 1, that must be in the first language found. Text in which
    CLD2 finds no language (too short, mostly symbols) is dropped as `undetected` unless `keep_undetected`.
    """

    enabled: bool = True
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


def detect(text: str) -> Language:
    """The language of a text by CLD2, from all of it; the same text always gives the same answer."""
    cld2: Any = import_extra("pycld2", extra="data")
    try:
        _, _, details = cld2.detect(text.translate(_NOT_TEXT).encode(), bestEffort=True)
    except cld2.error:  # a character that CLD2's own UTF-8 check does not allow
        printable = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
        _, _, details = cld2.detect(printable.encode(), bestEffort=True)
    _, code, percent, _ = details[0]
    return Language("", 0.0) if code == "un" else Language(code, percent / 100)


def drop_reason(found: Language, config: LanguageConfig) -> str | None:
    """Why a document in this language goes, or None."""
    if not config.keep:
        return None
    if not found.code:
        return None if config.keep_undetected else "undetected"
    if found.code not in config.keep:
        return "other_language"
    return None if found.share >= config.min_share else "mixed_languages"


def filter_languages(config: LanguageConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: a shard to (shard, trace), with `language` and `language_share` added to the metadata.

    Facts: `languages`, documents by language before any is dropped.
    """
    languages: Counter[str] = Counter()
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally("language", trace)
        for document in read_shard(inputs[0]):
            found = detect(document.text)
            languages[found.code or "undetected"] += 1
            reason = drop_reason(found, config)
            if reason is not None:
                tally.drop(reason, document.n_bytes, document.id, detail=f"{found.code} {found.share:.2f}")
                continue
            tally.keep(document.n_bytes, document.n_bytes)
            added = {"language": found.code or "undetected", "language_share": found.share}
            write(Document(document.id, document.text, {**document.metadata, **added}))
    return Result([tally.counts()], {"languages": dict(sorted(languages.items()))})


LANGUAGE = Stage(
    name="language",
    function=filter_languages,
    modules=("language", "documents", "traces"),
    packages=("pycld2", "zstandard"),
)
