"""`triaxial evaluate --text`: perplexity of text files and token corpora, in sliding windows."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.evaluation.perplexity import TextLoss, perplexity, text_loss
from gpt.evaluation.text_windows import TextChunk, corpus_documents, read_text, text_chunks
from gpt.token_files.corpus import describe_corpus, open_tokens
from gpt.token_files.files import TokenFile, shard_prefixes
from gpt.tokenizer.special_tokens import special_tokens_of
from gpt.tokenizer.tokenizers import Tokenizer
from launch.processes.terminal import WorkProgress
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.open_model import OpenedModel
from launch.runs.saved_run import SavedRun


@dataclass(frozen=True)
class TextSource:
    """A text file, or a token corpus by its prefix."""

    path: Path
    corpus: TokenFile | None

    def documents(self, tokenizer: Tokenizer) -> Iterator[Iterable[TextChunk]]:
        if self.corpus is None:
            return iter([text_chunks(self.path, tokenizer)])
        return corpus_documents(self.corpus, tokenizer)


def open_texts(args: argparse.Namespace) -> list[TextSource]:
    """Open what --text names. Reads the text files through, so that an error comes before hours of work."""
    for name in ("window", "stride"):
        if (value := getattr(args, name)) is None:
            continue
        if not args.text:
            raise ConfigError(f"--{name} {value} is only valid with --text FILE. Add a text, or leave --{name} out.")
        if value < 1:
            raise ConfigError(f"--{name} {value} is invalid: it must be at least 1 token.")
    return [_open(path) for path in dict.fromkeys(args.text)]


def evaluate_texts(
    opened: OpenedModel, texts: list[TextSource], args: argparse.Namespace, progress: WorkProgress
) -> dict[str, Any]:
    """Return the figures of each text, and of all texts together if there are several."""
    window, stride = window_and_stride(args, n_ctx=opened.saved.model_config.n_ctx)
    saved = opened.saved
    for text in texts:
        _check_tokenizer(text, saved)
    special = special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer)
    losses = {}
    for text in texts:
        reading = _Reading(text, progress)
        losses[str(text.path)] = text_loss(
            opened.model,
            reading.documents(saved.tokenizer),
            first_id=special.begin_id,
            window=window,
            stride=stride,
            batch_tokens=args.batch_tokens,
            scored=reading.scored,
        )
    report: dict[str, Any] = {
        "window": window,
        "stride": stride,
        "texts": {name: figures(loss) for name, loss in losses.items()},
    }
    return report | ({"together": figures(reduce(add, losses.values()))} if len(losses) > 1 else {})


def window_and_stride(args: argparse.Namespace, *, n_ctx: int) -> tuple[int, int]:
    """Return window and stride in tokens. ConfigError: a window longer than the context, or gaps between windows."""
    window = n_ctx if args.window is None else args.window
    if window > n_ctx:
        raise ConfigError(
            f"--window {window} is invalid: the model's context is n_ctx = {n_ctx} tokens. Use 1 to {n_ctx}."
        )
    stride = max(1, window // 2) if args.stride is None else args.stride
    if stride > window:
        raise ConfigError(
            f"--stride {stride} is invalid: it would skip tokens, since a window has {window} tokens. Use 1 to "
            f"{window}."
        )
    return window, stride


def figures(loss: TextLoss) -> dict[str, float | int | None]:
    """Return the figures of one text; None for a mean over nothing."""
    return {
        "tokens": loss.tokens,
        "words": loss.words,
        "bytes": loss.n_bytes,
        "nats_per_token": loss.nats_per_token,
        "nats_per_word": loss.nats_per_word,
        "nats_per_byte": loss.nats_per_byte,
        "bits_per_byte": loss.bits_per_byte,
        "token_perplexity": perplexity(loss.nats_per_token),
        "word_perplexity": perplexity(loss.nats_per_word),
    }


def _open(path: Path) -> TextSource:
    if path.is_file():
        if path.suffix in (".bin", ".idx", ".sums") and path.with_suffix(".idx").is_file():
            raise ConfigError(
                f"--text {path} is invalid: give a token corpus without its suffix, {path.with_suffix('')}."
            )
        if not any(read_text(path)):
            raise ConfigError(f"--text {path} is empty: there is nothing to predict.")
        return TextSource(path, None)
    if path.is_dir():
        raise ConfigError(f"--text {path} is a folder. Give text files, or a token corpus by its prefix.")
    if not any(Path(f"{prefix}.idx").is_file() for prefix in shard_prefixes(path)):
        raise ConfigError(f"--text {path}: no such text file, and no token corpus {path}.bin with its .idx.")
    corpus = open_tokens(path)
    if not corpus.n_tokens:
        raise ConfigError(f"--text {path}: the token corpus is empty, so there is nothing to predict.")
    return TextSource(path, corpus)


def _check_tokenizer(text: TextSource, saved: SavedRun) -> None:
    """Raise ConfigError if another tokenizer made a token corpus, by the corpus.json next to it."""
    description = describe_corpus(text.path) if text.corpus is not None else None
    if description is None:
        return
    made_by, own = description["tokenizer"], saved.tokenizer
    if made_by["fingerprint"] != own.fingerprint:
        raise ConfigError(
            f"--text {text.path}: {made_by['file']} (fingerprint {made_by['fingerprint'][:16]}) made this corpus, but "
            f"the run's tokenizer is {saved.tokenizer_file} (fingerprint {own.fingerprint[:16]}). Give the text "
            "itself, or a corpus of this tokenizer."
        )


class _Reading:
    """Reads the documents of a text, and reports how many of its tokens are scored.

    A text file's number of tokens is unknown before its end: the share of its bytes stands for it.
    """

    def __init__(self, text: TextSource, progress: WorkProgress) -> None:
        self._text, self._progress = text, progress
        self._read_size = self._read_tokens = self._scored_tokens = 0
        size = text.path.stat().st_size if text.corpus is None else text.corpus.n_tokens
        progress.start(f"perplexity, {text.path.name}", total=size)

    def documents(self, tokenizer: Tokenizer) -> Iterator[Iterator[TextChunk]]:
        for document in self._text.documents(tokenizer):
            yield self._counted(document)

    def _counted(self, document: Iterable[TextChunk]) -> Iterator[TextChunk]:
        for chunk in document:
            self._read_tokens += len(chunk.tokens)
            self._read_size += chunk.n_bytes if self._text.corpus is None else len(chunk.tokens)
            yield chunk

    def scored(self, tokens: int) -> None:
        self._scored_tokens += tokens
        self._progress.update(self._read_size * min(1.0, self._scored_tokens / max(1, self._read_tokens)))
