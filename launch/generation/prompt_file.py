"""`triaxial generate --input`: a file of prompts, a JSON object a line, continued in batches into another such file."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt.errors import ConfigError
from gpt.evaluation.batching.data_parallel import gather_by_index
from gpt.files.atomic import replace_file
from gpt.inference.cpu_model import packed
from gpt.inference.model import InferenceModel
from gpt.inference.text_stream import GeneratedText
from gpt.tokenizer.tokenizers import Tokenizer
from launch.generation.jobs import GenerationJob, GenerationSettings, PromptLine, continue_batch

RESULTS = ("text", "tokens", "log_probs", "finish_reason", "sample")  # what an output line adds to its input line
_SURROGATE = re.compile("[\ud800-\udfff]")


# Reading


def read_lines(path: Path) -> list[PromptLine]:
    """The objects of a file of JSON lines, or of standard input for '-'. ConfigError names the first line that is none,
    or that has no prompt."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--input {path} cannot be read: {(error.strerror or '').lower()}") from None
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            where = f"--input {path}, line {number}"
            found.append(PromptLine(_fields(line, where=where), where))
    if not found:
        raise ConfigError(f'--input {path} holds no line; write one JSON object a line, such as {{"prompt": "The"}}')
    return found


def _fields(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ConfigError(f'{where} must be an object with a text \'prompt\', such as {{"prompt": "The"}}')
    for key, least in (("max_new_tokens", 1), ("seed", None)):
        value = fields.get(key)
        if value is not None and (type(value) is not int or (least is not None and value < least)):
            rule = "a whole number" if least is None else f"a whole number from {least} on"
            raise ConfigError(f"{where}: '{key}' = {json.dumps(value)} must be {rule}")
    for key in RESULTS:
        if key in fields:
            raise ConfigError(f"{where}: the name '{key}' is one that the output adds; give this field another")
    return fields


# Continuing


def batches_of(jobs: Sequence[GenerationJob], rules: GenerationSettings, *, data_size: int) -> Iterator[list[int]]:
    """Numbers of jobs, the longest first, in batches of at most `batch_size` sequences and `batch_tokens` tokens,
    padding included; a longer sequence is a batch of its own. Each of `data_size` ranks gets one, if there are as many.
    """
    order = sorted(range(len(jobs)), key=lambda i: -(len(jobs[i].prompt) + jobs[i].max_new_tokens))
    most = min(rules.batch_size or len(jobs), -(-len(jobs) // data_size))
    batch: list[int] = []
    for i in order:
        grown = [*batch, i]
        width = max(len(jobs[j].prompt) for j in grown) + max(jobs[j].max_new_tokens for j in grown)
        if batch and (len(grown) > most or width * len(grown) > rules.batch_tokens):
            yield batch
            grown = [i]
        batch = grown
    yield batch


def continue_jobs(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: Sequence[GenerationJob],
    rules: GenerationSettings,
    *,
    n_ctx: int,
    shows: bool,
) -> list[dict[str, Any]]:
    """The output line of each job, in their order. Every rank of a layout calls it and has them all; the one that
    `shows` has a progress bar."""
    batches = list(batches_of(jobs, rules, data_size=model.data_size))
    mine = batches[model.data_rank :: model.data_size]
    model = packed(model, rows=max(map(len, batches)))
    found: dict[int, dict[str, Any]] = {}
    limits = [jobs[i].max_new_tokens for batch in mine for i in batch]
    with _progress(shows=shows) as progress:
        bar = progress.add_task("tokens", total=sum(limits))

        def token_done() -> None:
            progress.advance(bar)

        for batch in mine:
            lines = _continue_batch(
                model, tokenizer, [jobs[i] for i in batch], rules, n_ctx=n_ctx, token_done=token_done
            )
            found.update(zip(batch, lines, strict=True))
            progress.update(bar, completed=sum(limits[: len(found)]))  # some stopped before their limit
    together = gather_by_index(model, found)
    return [together[i] for i in range(len(jobs))]


def _continue_batch(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: list[GenerationJob],
    rules: GenerationSettings,
    *,
    n_ctx: int,
    token_done: Callable[[], None],
) -> list[dict[str, Any]]:
    texts = [GeneratedText(tokenizer, job.prompt, rules.stops) for job in jobs]

    def watch(i: int, tokens: list[int]) -> bool:
        token_done()
        if rules.stops:
            texts[i].update(tokens)
        return texts[i].stopped

    results = continue_batch(model, tokenizer, jobs, rules, n_ctx=n_ctx, watch=watch)
    for text, result in zip(texts, results, strict=True):
        text.finish(result.tokens)
    return [
        {
            **job.fields,
            "text": text.text,
            "tokens": result.tokens,
            "log_probs": [round(log_prob, 6) for log_prob in result.log_probs],
            "finish_reason": "stop" if result.stopped else "length",
        }
        for job, text, result in zip(jobs, texts, results, strict=True)
    ]


def check_output(path: Path) -> None:
    """ConfigError before the work when its result could not be written after it."""
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "may not be written to" if path.parent.is_dir() else "is not there"
        raise ConfigError(f"--output {path}: the folder {path.parent} {why}")


def write_lines(path: Path | None, lines: Sequence[dict[str, Any]]) -> None:
    """To a file that is there whole or not at all, or to standard output."""
    text = "".join(_line(line) for line in lines)
    if path is None:
        sys.stdout.write(text)
    else:
        replace_file(path, text)


def _line(fields: dict[str, Any]) -> str:
    """As it reads, but for a lone surrogate, which no file can hold."""
    line = json.dumps(fields, ensure_ascii=False)
    return (line if line.isascii() or not _SURROGATE.search(line) else json.dumps(fields)) + "\n"


def _progress(*, shows: bool) -> Progress:
    """A bar on standard error, so that piped output holds results only."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True)]
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, transient=True, disable=not (shows and console.is_terminal))
