"""Demonstrations, rankings and prompts made by rule from the sentences of a corpus, for `triaxial demo --instruct`.

The task: 'Write a short sentence that begins with "Return" and contains "list".' A rule stands in for people: it gives
an answer four marks, for its beginning, the word that it must contain, its end and its length. It likes shorter answers
than the demonstrations, as people may: that is what PPO can learn and fine-tuning cannot.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer

ASKS = 'Write a short sentence that begins with "{start}" and contains "{word}".'
KINDS = ("demonstrations", "rankings", "prompts")
MIN_WORDS, MAX_WORDS = 4, 8  # the rule's
DEMONSTRATED = range(5, 15)  # words of a demonstration
MIN_STARTS, MIN_USES = 12, 20  # sentences that begin with a word, and that contain one: a small model must know both
_ASKED = re.compile(r'begins with "(\w+)" and contains "(\w+)"')


def write_instructions(folder: Path, corpus: TokenFile, tokenizer: Tokenizer, *, seed: int = 0) -> dict[str, int]:
    """Write KINDS as JSON lines, one folder a kind. Return the number of lines of each.

    The same corpus and seed give the same files. ConfigError: the corpus has too few sentences.
    """
    found = sentences(corpus, tokenizer)
    short = [sentence for sentence in found if len(sentence.split()) in DEMONSTRATED]
    long = [sentence for sentence in found if DEMONSTRATED.stop <= len(sentence.split()) <= 2 * DEMONSTRATED.stop]
    chance = random.Random(seed)
    tasks = _tasks(short, chance)
    if len(tasks) < 20 or not long:
        raise ConfigError(
            f"the corpus gives {len(tasks)} tasks of sentences with {DEMONSTRATED.start} to {DEMONSTRATED[-1]} words; "
            "instructions need at least 20, and some longer sentences. Use a larger corpus"
        )
    chance.shuffle(tasks)
    half = len(tasks) // 2
    brief = [sentence for sentence in short if len(sentence.split()) <= MAX_WORDS] or short
    lines: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": prompt, "completion": sentence} for prompt, sentence in tasks],
        "rankings": [_ranking(prompt, sentence, brief, long, chance) for prompt, sentence in tasks[half:]],
        "prompts": [{"prompt": prompt} for prompt in sorted({prompt for prompt, _ in tasks})],
    }
    for kind, records in lines.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records)
        replace_file(folder / kind / f"{kind}.jsonl", text)
    return {kind: len(records) for kind, records in lines.items()}


def marks(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The rule: a quarter each for the first word, the word that it must contain, one whole sentence, and MIN_WORDS to
    MAX_WORDS words. PPO measures it as a reward that it never learns from."""
    return [_marks(prompt, answer) / 4 for prompt, answer in zip(prompts, answers, strict=True)]


def _marks(prompt: str, answer: str) -> int:
    asked, answer = _ASKED.findall(prompt), answer.strip()
    start, word = asked[-1] if asked else ("", "")
    words = re.findall(r"\w+", answer)
    is_one = answer.endswith(".") and not re.search(r"[.!?]\s", answer) and "\n" not in answer
    fits = MIN_WORDS <= len(answer.split()) <= MAX_WORDS
    return (words[:1] == [start]) + (word in words[1:]) + is_one + fits


def sentences(corpus: TokenFile, tokenizer: Tokenizer) -> list[str]:
    """The different sentences of a corpus that end with a full stop, in order. Lines and full stops part them."""
    found: dict[str, None] = {}
    for document in range(corpus.n_documents):
        ids = corpus.read(corpus.document_start(document), corpus.document_start(document + 1)).tolist()
        text = tokenizer.decode([token for token in ids if token != tokenizer.end_of_document_id])
        for line in text.splitlines():
            parts = re.split(r"(?<=\.)\s+", line.strip())
            whole = (part for part in parts if part.endswith(".") and part[:1].isupper())
            found |= dict.fromkeys(part for part in whole if '"' not in part)
    return list(found)


def _tasks(short: Sequence[str], chance: random.Random) -> list[tuple[str, str]]:
    """Prompts with a sentence that answers each: its first word, and one of its other words, are common."""
    words = {sentence: re.findall(r"\w+", sentence) for sentence in short}
    starts = Counter(found[0] for found in words.values())
    uses = Counter(word for found in words.values() for word in set(found[1:]))
    tasks = []
    for sentence, found in words.items():
        others = sorted({word for word in found[1:] if len(word) > 3 and uses[word] >= MIN_USES})
        if starts[found[0]] >= MIN_STARTS and others:
            tasks.append((ASKS.format(start=found[0], word=chance.choice(others)), sentence))
    return tasks


def _ranking(
    prompt: str, sentence: str, brief: Sequence[str], long: Sequence[str], chance: random.Random
) -> dict[str, Any]:
    """A prompt with five answers of different faults, ranked by the rule; equal marks are ties."""
    words = sentence.split()
    cut = " ".join(words[: chance.randrange(2, len(words))]).rstrip(".")
    more = chance.choice(long)
    rambling = f"{words[0]} {more[:1].lower()}{more[1:]}"
    same_start = [other for other in brief if other.startswith(f"{words[0]} ")] or brief
    scrambled = " ".join(chance.sample(words, len(words)))
    answers = [sentence, cut, rambling, chance.choice(same_start), scrambled]
    completions = [{"text": answer, "score": _marks(prompt, answer)} for answer in answers]
    return {"prompt": prompt, "completions": completions}
