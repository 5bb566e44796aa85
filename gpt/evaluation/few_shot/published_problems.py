"""Read the problems in the data files of openai/gpt-3, and give them the layout of the paper. Downloads nothing.

A line is {"context": "\\n\\nQ: What is 65360 plus 16204?\\n\\nA:", "completion": " 81564"}, or "\\nasinoc =" and
" casino". The paper's appendix G has no empty line between question and answer, so we remove it.
"""

import gzip
import re
import zlib
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.evaluation.few_shot.gpt3_problems import MAX_EXAMPLES, Problem, ProblemSet, TaskRule
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular

MAX_BYTES = 1 << 26  # of unpacked text; the published files have less than 1 MB
_ARITHMETIC = re.compile(r"Q: What is .+\?\nA:")
_WORDS = re.compile(r"\S.* =")


def published_problems(rule: TaskRule, folder: Path) -> ProblemSet:
    """Read the problems of one task, in the order of its file. The last 200 are the examples, which are not scored; or
    the last tenth, if there are fewer than 2,000 problems.

    ConfigError: the file is missing or of another kind, or it has fewer than ten problems.
    """
    path = _find(rule, folder)
    problems = []
    try:
        with open_regular(path) as packed:
            file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
            text = file.read(MAX_BYTES + 1)
        lines = text.decode("utf-8").splitlines()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"--gpt3-data: {path} cannot be read: {error}") from None
    except OSError as error:
        raise file_error(error, f"--gpt3-data: {path} cannot be read: {error}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"--gpt3-data: {path} has more than {MAX_BYTES:,} bytes of text, which no published file has")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            problems.append(_read(line, rule, where=f"{path} line {number}"))
    n_examples = min(MAX_EXAMPLES, len(problems) // 10)
    if not n_examples:
        raise ConfigError(f"--gpt3-data: {path} has {len(problems)} problems, but needs at least 10.")
    return ProblemSet(scored=tuple(problems[:-n_examples]), examples=tuple(problems[-n_examples:]))


def _find(rule: TaskRule, folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"--gpt3-data {folder} is not a folder. Give the folder `data` of a checkout of openai/gpt-3."
        )
    stem = rule.name.removeprefix("gpt3_")
    for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(
        f"--gpt3-data {folder} has no {stem}.jsonl or {stem}.jsonl.gz. Leave {rule.name} out of --tasks, or leave out "
        "--gpt3-data to use generated problems."
    )


def _read(line: str, rule: TaskRule, *, where: str) -> Problem:
    try:
        row = decode_json(line)
        question, answer = row["context"], row["completion"]
        question = question.lstrip("\n").replace("\n\nA:", "\nA:")
        answer = answer.strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f'--gpt3-data: {where} is not {{"context": TEXT, "completion": TEXT}}.') from None
    layout, example = (_WORDS, "lyinevitab =") if rule.about_words else (_ARITHMETIC, "Q: What is 48 plus 76? ... A:")
    if not layout.fullmatch(question) or not answer:
        raise ConfigError(f"--gpt3-data: {where} is not a problem of {rule.name}. Its contexts look like '{example}'.")
    return Problem(question, answer)
