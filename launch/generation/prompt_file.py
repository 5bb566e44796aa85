"""`triaxial generate --input`: generate after every prompt of a JSON-lines file, in batches, into another such file."""

import json
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, file_error
from gpt.evaluation.batching.data_parallel import gather_by_index
from gpt.files.atomic import replace_file
from gpt.files.json_rules import MAX_COUNT
from gpt.files.json_text import decode_json, escaped_json, without_nan
from gpt.files.regular import read_bytes
from gpt.inference.model import InferenceModel
from gpt.inference.text_stream import GeneratedText
from gpt.tokenizer.tokenizers import Tokenizer
from launch.generation.jobs import GenerationJob, GenerationSettings, PromptLine, continue_batch
from launch.processes.terminal import work_progress

RESULTS = (
    "text",
    "tokens",
    "log_probs",
    "finish_reason",
    "sample",
)  # the fields that an output line adds to its input line
_SURROGATE = re.compile("[\ud800-\udfff]")


# Reading


def read_lines(path: Path, *, option: str = "--input") -> list[PromptLine]:
    """Read the objects of a JSON-lines file, or of standard input for '-'. `option` names the file in errors.

    ConfigError: a line is not an object with a prompt, or has a field that the output adds; names the first such line.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_bytes(path)
    except OSError as error:
        raise file_error(error, f"{option} {path} cannot be read: {(error.strerror or '').lower()}") from None
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            where = f"{option} {path}, line {number}"
            found.append(PromptLine(_fields(line, where=where), where))
    if not found:
        raise ConfigError(f'{option} {path} has no lines. Write one JSON object per line, such as {{"prompt": "The"}}.')
    return found


def _fields(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        fields = decode_json(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}.") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ConfigError(f'{where} must be an object with a text \'prompt\', such as {{"prompt": "The"}}.')
    try:
        json.dumps(fields, allow_nan=False)  # the output has these fields too
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{where} has NaN or infinity, which JSON does not have, or is nested too deeply. Use null."
        ) from None
    for key, minimum in (("max_new_tokens", 1), ("seed", 0)):
        value = fields.get(key)
        if value is not None and (type(value) is not int or not minimum <= value <= MAX_COUNT):
            raise ConfigError(
                f"{where}: '{key}' = {reprlib.repr(value)} is invalid: it must be a whole number from {minimum} to "
                f"{MAX_COUNT}."
            )
    for key in RESULTS:
        if key in fields:
            raise ConfigError(f"{where}: the output adds a field '{key}'. Rename the field of the input.")
    return fields


# Continuing


def batches_of(jobs: Sequence[GenerationJob], settings: GenerationSettings, *, data_size: int) -> Iterator[list[int]]:
    """Batch jobs, the longest first, by at most `batch_size` sequences and `batch_tokens` tokens, padding included.

    Yields the indices of the jobs. A longer sequence is a batch of its own. There are at least `data_size` batches, one
    for each data rank, if there are as many jobs.
    """
    order = sorted(range(len(jobs)), key=lambda i: -(len(jobs[i].prompt) + jobs[i].max_new_tokens))
    max_sequences = min(settings.batch_size or len(jobs), -(-len(jobs) // data_size))
    batch: list[int] = []
    for i in order:
        grown = [*batch, i]
        width = max(len(jobs[j].prompt) for j in grown) + max(jobs[j].max_new_tokens for j in grown)
        if batch and (len(grown) > max_sequences or width * len(grown) > settings.batch_tokens):
            yield batch
            grown = [i]
        batch = grown
    yield batch


def continue_jobs(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: Sequence[GenerationJob],
    settings: GenerationSettings,
    *,
    n_ctx: int,
    shows: bool,
) -> list[dict[str, Any]]:
    """Run all jobs. Returns their output lines in the order of the jobs.

    Every rank of a layout must call it; all get all lines. `shows`: whether this rank shows a progress bar.
    """
    batches = list(batches_of(jobs, settings, data_size=model.data_size))
    mine = batches[model.data_rank :: model.data_size]
    found: dict[int, dict[str, Any]] = {}
    limits = [jobs[i].max_new_tokens for batch in mine for i in batch]
    with work_progress(shows=shows) as progress:
        progress.start("generating tokens", total=sum(limits))

        def token_done() -> None:
            progress.advance()

        for batch in mine:
            lines = _continue_batch(
                model, tokenizer, [jobs[i] for i in batch], settings, n_ctx=n_ctx, token_done=token_done
            )
            found.update(zip(batch, lines, strict=True))
            progress.update(sum(limits[: len(found)]))  # some stopped before their limit
    lines_of = gather_by_index(model, found)
    return [lines_of[i] for i in range(len(jobs))]


def _continue_batch(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: list[GenerationJob],
    settings: GenerationSettings,
    *,
    n_ctx: int,
    token_done: Callable[[], None],
) -> list[dict[str, Any]]:
    texts = [GeneratedText(tokenizer, job.prompt, settings.stops) for job in jobs]

    def watch(i: int, tokens: list[int]) -> bool:
        token_done()
        if settings.stops:
            texts[i].update(tokens)
        return texts[i].stopped

    results = continue_batch(model, tokenizer, jobs, settings, n_ctx=n_ctx, watch=watch)
    for text, result in zip(texts, results, strict=True):
        text.finish(result.tokens)
    return [
        {
            **job.fields,
            "text": text.text,
            "tokens": result.tokens,
            "log_probs": without_nan([round(log_prob, 6) for log_prob in result.log_probs]),
            "finish_reason": "stop" if result.stopped else "length",
        }
        for job, text, result in zip(jobs, texts, results, strict=True)
    ]


def write_lines(path: Path | None, lines: Sequence[dict[str, Any]]) -> None:
    """Write the lines to a file, whole or not at all, or to standard output."""
    text = "".join(_line(line) for line in lines)
    if path is None:
        sys.stdout.write(escaped_json(text) if sys.stdout.isatty() else text)
    else:
        replace_file(path, text)


def _line(fields: dict[str, Any]) -> str:
    """Return a JSON line. Non-ASCII characters stay as they are, unless one is a lone surrogate, which UTF-8 lacks."""
    line = json.dumps(fields, ensure_ascii=False)
    return (line if line.isascii() or not _SURROGATE.search(line) else json.dumps(fields)) + "\n"
