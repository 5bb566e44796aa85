"""The task of passages and their continuations: its questions, and its score by the harness."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.evaluation.continuations import TASK, passages, write_continuations

# A tokenizer of numbers: token i is the word "wi".
TOKENIZER: Any = SimpleNamespace(end_of_document_id=0, decode=lambda ids: " ".join(f"w{i}" for i in ids))


def corpus(folder: Path, lengths: list[int]) -> TokenFile:
    with TokenFileWriter(folder / "tokens", vocab_size=5000) as writer:
        for number, length in enumerate(lengths):
            writer.add_document(np.array([*range(1 + 500 * number, 1 + 500 * number + length), 0]))
    return TokenFile(folder / "tokens")


def test_passages_do_not_overlap_and_stay_inside_documents(tmp_path: Path) -> None:
    found = passages(corpus(tmp_path, [39, 40, 121]), TOKENIZER)
    assert [passage.document for passage in found] == [1, 2, 2, 2]
    assert found[2].context.split() == [f"w{i}" for i in range(1041, 1073)]
    assert found[2].answer.split() == [f"w{i}" for i in range(1073, 1081)]


def test_each_question_has_one_right_answer_and_three_of_other_documents(tmp_path: Path) -> None:
    tokens = corpus(tmp_path, [200, 90, 80, 45, 400])
    assert write_continuations(tmp_path / "a", tokens, TOKENIZER) == 5 + 2 + 2 + 1 + 10
    questions = [json.loads(line) for line in (tmp_path / "a" / f"{TASK}.jsonl").read_text().splitlines()]
    for question in questions:
        last = int(question["context"].split()[-1][1:])
        firsts = [int(choice.split()[0][1:]) for choice in question["choices"]]
        assert firsts[question["answer"]] == last + 1
        assert len({first // 500 for first in firsts}) == 4, "of four documents"
    assert {question["answer"] for question in questions} == {0, 1, 2, 3}
    write_continuations(tmp_path / "b", tokens, TOKENIZER)
    again, first = ((tmp_path / name / f"{TASK}.jsonl").read_text() for name in "ab")
    assert again == first


def test_a_corpus_of_too_few_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="passages of 40 words from 4 documents, and only 3 of the corpus have one"):
        write_continuations(tmp_path / "a", corpus(tmp_path, [40, 80, 39, 50]), TOKENIZER)


def test_the_harness_scores_the_task(made: Any, triaxial: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    tokenizer = load_tokenizer(made.directory / "tokenizer" / "original.model")
    words = tokenizer.decode(made.validation).split()
    with TokenFileWriter(tmp_path / "tokens", vocab_size=360) as writer:
        for start in range(5):
            text = " ".join(word[:4] for word in words[start : start + 90])
            writer.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
    questions = write_continuations(tmp_path / "own", TokenFile(tmp_path / "tokens"), tokenizer)
    options = ["--tasks", TASK, "--include-path", tmp_path / "own", "--num-fewshot", "0", "--limit", "8"]
    assert triaxial("evaluate", made.directory, *options, "--json", tmp_path / "report.json") == 0
    (score,) = json.loads((tmp_path / "report.json").read_text())["few_shot"]
    assert (score["task"], score["metric"], score["items"]) == (TASK, "acc_norm", min(8, questions))
