"""Names of special tokens in a marked text are the tokens; in a plain text they stay text."""

import pytest

from gpt.errors import ConfigError
from gpt.tokenizer.marked_text import MarkedTextEncoder, special_names
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(["some words"], trainer)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_marked_and_plain_text_differ(path):
    encoder, tokenizer = MarkedTextEncoder(path), load_tokenizer(path)
    assert special_names(tokenizer) == {0: "<|endoftext|>", 1: "<|end|>"}
    assert encoder.encode("a<|end|>b") == [*encoder.encode("a"), 1, *encoder.encode("b")]
    assert 1 not in tokenizer.encode("a<|end|>b")
    assert encoder.encode("some words") == tokenizer.encode("some words")
    assert encoder.find_special("a <|end|>") == "<|end|>"
    assert encoder.find_special("a < |end|>") is None
    ids, spans = encoder.encode_spans("ab<|end|>")
    assert (ids[-1], spans[-1]) == (1, (2, 9))
    assert encoder.joins


def test_only_a_tokenizer_json_has_marks(tmp_path):
    model = tmp_path / "t.model"
    train_sentencepiece(iter(["one two three four five six seven eight " * 9]), model, vocab_size=290)
    with pytest.raises(ConfigError, match=r"t.model is invalid for a chat template: must be a tokenizer.json"):
        MarkedTextEncoder(model)
    assert special_names(load_tokenizer(model)) == {1: "<|endoftext|>"}
