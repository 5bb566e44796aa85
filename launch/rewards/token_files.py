"""Rankings and demonstrations in token files, as sequences to score."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_lines
from gpt.post_training.ranking_accuracy import Floats, Ints, RankedPrompt
from gpt.token_files.corpus import describe_corpus, open_tokens
from gpt.token_files.files import TokenFile

MAX_SCORE = 1e30  # larger ones are damage; their differences would overflow


def is_token_file(path: Path) -> bool:
    """Return whether a path is the prefix of token files."""
    return Path(f"{path}.idx").is_file() or any(path.parent.glob(f"{path.name}-*-of-*.idx"))


def ranked_prompts(prefix: Path, *, tokenizer: Path, fingerprint: str) -> list[RankedPrompt]:
    """The rankings of PREFIX with its stream PREFIX_marks. PREFIX_rankings.jsonl, if it exists, has prompt ids,
    labellers and scores; line i describes document i.

    ConfigError: another tokenizer made the corpus, or the files do not match.
    """
    _check_tokenizer(prefix, path=tokenizer, fingerprint=fingerprint)
    tokens, marks = open_tokens(prefix), TokenFile(Path(f"{prefix}_marks"))
    starts = tokens.document_starts()
    if marks.n_tokens != tokens.n_tokens or marks.n_documents != tokens.n_documents:
        raise ConfigError(f"{prefix}_marks.idx is invalid: {prefix}.idx has other documents. Prepare both again")
    facts = _side_file(Path(f"{prefix}_rankings.jsonl"), n_documents=tokens.n_documents)
    found = []
    for number, fact in enumerate(facts):
        start, stop = int(starts[number]), int(starts[number + 1])
        ids, levels = tokens.read(start, stop).astype(np.int64), marks.read(start, stop).astype(np.int64)
        ends = np.flatnonzero(levels) + 1
        completions = tuple(part for part in np.split(ids, ends)[: len(ends)])
        scores = _scores(fact.get("scores"), len(ends))
        found.append(
            RankedPrompt(
                str(fact.get("prompt_id", number)),
                str(fact.get("labeller", "")),
                completions,
                levels[ends - 1] - 1,
                scores,
            )
        )
    return found


def demonstrations(prefix: Path, *, tokenizer: Path, fingerprint: str) -> list[Ints]:
    """The documents of token files, each a whole conversation. ConfigError: another tokenizer made them."""
    _check_tokenizer(prefix, path=tokenizer, fingerprint=fingerprint)
    tokens = open_tokens(prefix)
    starts = tokens.document_starts()
    return [
        tokens.read(int(starts[i]), int(starts[i + 1])).astype(np.int64)
        for i in range(tokens.n_documents)
        if starts[i + 1] > starts[i]
    ]


def _check_tokenizer(prefix: Path, *, path: Path, fingerprint: str) -> None:
    """ConfigError if the corpus.json next to token files names another tokenizer than the run's."""
    description = describe_corpus(prefix)
    if description is None or description["tokenizer"]["fingerprint"] == fingerprint:
        return
    made_by = description["tokenizer"]
    raise ConfigError(
        f"{prefix} is invalid: {made_by['file']} (fingerprint {made_by['fingerprint'][:16]}) made these token files, "
        f"but the run's tokenizer is {path} (fingerprint {fingerprint[:16]}). Give the texts as JSON lines, which are "
        f"encoded for the run, or prepare them with its tokenizer"
    )


def _side_file(path: Path, *, n_documents: int) -> list[dict[str, Any]]:
    """An object for each document; empty ones without the file."""
    if not os.path.lexists(path):
        return [{} for _ in range(n_documents)]
    found = [fact for _, fact in read_json_lines(path)]
    if len(found) != n_documents:
        raise ConfigError(f"{path} is invalid: it has {len(found)} lines for {n_documents} documents. Prepare it again")
    return found


def _scores(values: Any, n: int) -> Floats:
    """The source's scores (n,), NaN where unknown."""
    if not isinstance(values, list) or len(values) != n:
        return np.full(n, np.nan)
    return np.array([float(v) if isinstance(v, (int, float)) and abs(v) < MAX_SCORE else np.nan for v in values])
