"""Make a multiple-choice task of a token corpus: which of four texts continues a passage?

The wrong texts continue other documents of the corpus, so small models are above chance. `triaxial evaluate
--include-path FOLDER --tasks continuations` asks it.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer

TASK = "continuations"
N_CHOICES = 4
CONTEXT_WORDS, ANSWER_WORDS = 32, 8

_YAML = """# Written by triaxial. acc_norm compares the log-probabilities of the choices per byte.
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
"""


@dataclass(frozen=True)
class Passage:
    """The words of one passage: the ones shown, and the ones that continue it."""

    document: int
    context: str
    answer: str


def write_continuations(folder: Path, corpus: TokenFile, tokenizer: Tokenizer, *, seed: int = 0) -> int:
    """Write the task and its questions, in random order, to `folder`. Return the number of questions.

    The same corpus and seed give the same questions. ConfigError: fewer than four documents have a passage.
    """
    found = passages(corpus, tokenizer)
    n_documents = len({passage.document for passage in found})
    if n_documents < N_CHOICES:
        raise ConfigError(
            f"a question needs passages of {CONTEXT_WORDS + ANSWER_WORDS} words from {N_CHOICES} documents, and only "
            f"{n_documents} of the corpus have one. Evaluate on a larger corpus."
        )
    chance = random.Random(seed)
    chance.shuffle(found)
    lines = []
    for passage in found:
        answers: dict[int, str] = {passage.document: passage.answer}
        while len(answers) < N_CHOICES:
            other = chance.choice(found)
            answers.setdefault(other.document, other.answer)
        choices = list(answers.values())
        chance.shuffle(choices)
        question = {"context": passage.context, "choices": choices, "answer": choices.index(passage.answer)}
        lines.append(json.dumps(question) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    data, cache = (json.dumps(str(folder.absolute() / name)) for name in (f"{TASK}.jsonl", "cache"))
    replace_file(folder / f"{TASK}.jsonl", "".join(lines))
    replace_file(folder / f"{TASK}.yaml", _YAML.format(task=TASK, data=data, cache=cache))
    return len(lines)


def passages(corpus: TokenFile, tokenizer: Tokenizer) -> list[Passage]:
    """Cut the documents of a corpus into passages that do not overlap. White space separates words."""
    found = []
    for document in range(corpus.n_documents):
        stop = corpus.document_start(document + 1)
        ids = corpus.read(corpus.document_start(document), stop).tolist()
        words = tokenizer.decode([token for token in ids if token != tokenizer.end_of_document_id]).split()
        length = CONTEXT_WORDS + ANSWER_WORDS
        for start in range(0, len(words) - length + 1, length):
            border = start + CONTEXT_WORDS
            context, answer = words[start:border], words[border : start + length]
            found.append(Passage(document, " ".join(context), " ".join(answer)))
    return found
