"""Choose the settings of a corpus from what is in the files: documents, filters, vocabulary and validation split."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.filters.language import detect
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.start.look import Survey

Preset = Literal["curated", "web"]
MIN_TEXT_BYTES = 20_000
LONG_TEXT_BYTES, FEW_FILES = 64 << 10, 16  # longer text files are cut into documents, and those of so few files
PART_BYTES = (1024, 8192)
MANY_PARTS = 256  # documents that a cut text should give at least, within PART_BYTES
VALIDATION_DOCUMENTS, VALIDATION_SHARE = 20, (0.005, 0.1)
BYTES_PER_PIECE = 500  # of text for each piece of the vocabulary
VOCABULARY = (320, 32_768)
_TRIED_VOCABULARY = 8192  # the largest that is trained on the sample, to count its tokens
_LANGUAGE_SHARE = 0.1


@dataclass(frozen=True)
class CorpusChoice:
    """The settings of a corpus, and the estimates that the choice of a model needs.

    `languages`: the share of the sample's bytes in each, the largest first. `model`: the content of a tokenizer that
    was trained on the sample. `tokens`: of the training split.
    """

    preset: Preset
    documents: int
    split_bytes: int | None
    separator: str
    languages: dict[str, float]
    keep: tuple[str, ...]
    rules: tuple[str, ...]
    vocab_size: int
    bytes_per_token: float
    validation_fraction: float
    tokens: int
    model: bytes


def choose_corpus(survey: Survey, preset: Preset) -> CorpusChoice:
    """Choose the settings of a corpus. ConfigError: there is too little text to train on."""
    where = ", ".join(survey.paths)
    if survey.text_bytes < MIN_TEXT_BYTES:
        raise ConfigError(
            f"{where}: {survey.text_bytes:,} bytes of text are too few to train on. Give at least {MIN_TEXT_BYTES:,}"
        )
    split_bytes, documents = _documents(survey)
    share = min(VALIDATION_SHARE[1], max(VALIDATION_SHARE[0], VALIDATION_DOCUMENTS / documents))
    languages = _languages(survey.sample)
    main = tuple(code for code, part in languages.items() if part >= _LANGUAGE_SHARE and code)
    vocab_size, bytes_per_token, model = _vocabulary(survey)
    return CorpusChoice(
        preset=preset,
        documents=documents,
        split_bytes=split_bytes,
        separator=survey.separator,
        languages=languages,
        keep=main or ("en",),
        rules=_rules(preset, main),
        vocab_size=vocab_size,
        bytes_per_token=bytes_per_token,
        validation_fraction=float(f"{share:.1g}"),
        tokens=round(survey.text_bytes / bytes_per_token * (1 - share)),
        model=model,
    )


def default_preset(survey: Survey) -> Preset:
    """Return `web` for web archives, else `curated`."""
    return "web" if "web archive" in survey.kinds else "curated"


def _documents(survey: Survey) -> tuple[int | None, int]:
    """Return the size of the parts of text files, None to keep them whole, and the documents that result."""
    n_texts = survey.kinds.get("text", 0)
    if not n_texts or survey.separator:
        return None, max(1, survey.documents)
    is_long = survey.text_bytes / survey.files > LONG_TEXT_BYTES
    if not is_long and (survey.files >= FEW_FILES or survey.documents > survey.files):
        return None, max(1, survey.documents)
    part = 1 << (max(1, survey.text_bytes // MANY_PARTS)).bit_length() - 1
    part = min(PART_BYTES[1], max(PART_BYTES[0], part))
    return part, max(2, round(survey.text_bytes / (1.1 * part)))


def _languages(sample: tuple[str, ...]) -> dict[str, float]:
    """Return the share of the sample's bytes in each main language, the largest first; "" is none."""
    sizes: Counter[str] = Counter()
    for text in sample[:200]:
        sizes[detect(text[:4000]).code] += len(text.encode("utf-8", "replace"))
    return {code: n / sizes.total() for code, n in sizes.most_common()} if sizes.total() else {}


def _rules(preset: Preset, languages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the rule sets: none for curated texts; all for English pages; without English words for others."""
    if preset == "curated":
        return ()
    every = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
    return every if languages in ((), ("en",)) else ("gopher_repetition", "fineweb")


def _vocabulary(survey: Survey) -> tuple[int, float, bytes]:
    """Return the vocabulary's size, the bytes of text for each token, and a tokenizer trained on the sample.

    The size is a power of two, with BYTES_PER_PIECE of text for each piece and room for the characters that occur.
    """
    characters = Counter(character for text in survey.sample for character in text)
    common = sum(n > 1 for n in characters.values())
    wanted = max(survey.text_bytes // BYTES_PER_PIECE, 2 * (common + 260), VOCABULARY[0])
    size = min(VOCABULARY[1], max(VOCABULARY[0], 1 << wanted.bit_length() - 1 if wanted >= 512 else VOCABULARY[0]))
    tried = min(size, _TRIED_VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        while True:
            try:
                train_sentencepiece(iter(survey.sample), path, vocab_size=tried)
                break
            except ConfigError:
                if tried <= VOCABULARY[0]:
                    raise ConfigError(
                        f"{', '.join(survey.paths)}: the texts are too uniform for a vocabulary of {tried} pieces. "
                        "Give other or more texts"
                    ) from None
                tried = max(VOCABULARY[0], tried // 2)
        tokenizer = load_tokenizer(path)
        n_bytes = sum(len(text.encode("utf-8", "replace")) for text in survey.sample)
        n_tokens = sum(map(len, tokenizer.encode_batch(list(survey.sample))))
        model = path.read_bytes()
    is_whole = n_bytes >= 0.5 * survey.text_bytes
    size = tried if is_whole or tried < min(size, _TRIED_VOCABULARY) else size
    growth = 1 + 0.08 * max(0, size.bit_length() - tried.bit_length())  # larger vocabularies have longer pieces
    return size, n_bytes / max(1, n_tokens) * growth, model
