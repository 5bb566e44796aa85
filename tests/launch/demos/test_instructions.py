"""The rule of `triaxial demo --instruct`, and the files that it makes."""

import json

import pytest

from gpt.errors import ConfigError
from gpt.token_files.corpus import open_tokens
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.demos.instructions import ASKS, KINDS, marks, sentences, write_instructions


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("Return a list of all names.", 1.0),
        ("Return a list of all names", 0.75),  # no full stop
        ("Return a list. It is sorted by name.", 0.75),  # two sentences
        ("Return a dict of all names.", 0.75),
        ("Make a list of all names.", 0.75),
        ("Return list.", 0.75),  # too short
        ("", 0.0),
        ("no", 0.0),
    ],
)
def test_each_fault_costs_a_quarter(answer, mark):
    prompt = f"User: {ASKS.format(start='Return', word='list')}\n\nAssistant:"
    assert marks([prompt], [answer]) == [mark]


@pytest.fixture(scope="module")
def corpus(tiny_corpus, tmp_path_factory):
    """Sentences in the tokens of the help topics."""
    tokenizer = load_tokenizer(tiny_corpus.folder / "topics.model")
    folder = tmp_path_factory.mktemp("sentences")
    with TokenFileWriter(folder / "train", vocab_size=tokenizer.vocab_size) as writer:
        for n in range(30):
            text = f"Return the value number {n} of the list. {'Call the function again and again ' * 3}with value {n}."
            writer.add_document(tokenizer.encode(text))
    return open_tokens(folder / "train"), tokenizer


def test_files_are_the_same_each_time_and_rankings_follow_the_rule(corpus, tmp_path):
    assert len(sentences(*corpus)) == 60
    for name in ("one", "two"):
        assert write_instructions(tmp_path / name, *corpus) == {"demonstrations": 30, "rankings": 15, "prompts": 3}
    for kind in KINDS:
        first, second = ((tmp_path / name / kind / f"{kind}.jsonl").read_text() for name in ("one", "two"))
        assert first == second
    for line in (tmp_path / "one" / "rankings" / "rankings.jsonl").read_text().splitlines():
        record = json.loads(line)
        texts = [completion["text"] for completion in record["completions"]]
        assert len(texts) == 5
        assert [c["score"] / 4 for c in record["completions"]] == marks([record["prompt"]] * 5, texts)
        assert record["completions"][0]["score"] == 4, "the sentence itself has no fault"


def test_a_corpus_without_sentences_is_refused(tiny_corpus, tmp_path):
    tokenizer = load_tokenizer(tiny_corpus.folder / "topics.model")
    with TokenFileWriter(tmp_path / "train", vocab_size=tokenizer.vocab_size) as writer:
        writer.add_document(tokenizer.encode("nothing here"))
    with pytest.raises(ConfigError, match=r"the corpus gives 0 tasks"):
        write_instructions(tmp_path / "made", open_tokens(tmp_path / "train"), tokenizer)
