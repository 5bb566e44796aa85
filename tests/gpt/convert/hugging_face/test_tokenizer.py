"""Exported tokenizers: transformers gives the same ids and texts; what a tokenizer.json cannot express is refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gpt.convert.hugging_face.tokenizer import SAMPLES, compare_tokenizers, write_tokenizer
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")


@pytest.fixture(scope="module")
def both_tokenizers(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("hf_tokenizer")
    ours = load_tokenizer(sentencepiece_file)
    write_tokenizer(sentencepiece_file, folder, tokenizer=ours, n_ctx=4096)
    assert compare_tokenizers(folder, ours) == len(SAMPLES)
    return ours, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    "alphabet", ["ab", " a", "ret ", "in g\n", "=- ", "\t of", "self. _", "0139. ", "\u2581 th", "ßüe"]
)
def test_equal_ids_on_random_text(both_tokenizers: tuple[Any, Any], alphabet: str) -> None:
    """Few letters give many ways to merge, so that a wrong order of merges shows."""
    ours, theirs = both_tokenizers
    rng = random.Random(alphabet)
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 50)))
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_random_ids_decode_to_the_same_text(both_tokenizers: tuple[Any, Any]) -> None:
    """Both leave out the end of a document. Invalid UTF-8, which no text gives, becomes U+FFFD in both, but
    `tokenizers` replaces the whole run of byte pieces for one wrong byte; only the other texts are compared exactly."""
    ours, theirs = both_tokenizers
    rng = random.Random(0)
    compared = 0
    for _ in range(600):
        ids = [rng.choice((1, *range(2, ours.vocab_size))) for _ in range(rng.randint(1, 4))]
        text = ours.decode(ids)
        found = theirs.decode(ids, skip_special_tokens=True)
        if "\ufffd" in text:
            assert "\ufffd" in found, ids
        else:
            assert found == text, ids
            compared += 1
    assert compared > 100


def test_text_that_equals_a_special_token_is_encoded_as_text(both_tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = both_tokenizers
    assert 1 not in theirs("a <|endoftext|> b")["input_ids"]
    assert ours.decode(theirs("a <|endoftext|> b")["input_ids"]) == "a <|endoftext|> b"


def test_a_tokenizer_json_is_copied_unchanged(tmp_path: Path, training_text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([training_text], trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(tmp_path / "tokenizer.json", folder, tokenizer=ours, n_ctx=64)
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert compare_tokenizers(folder, ours) == len(SAMPLES)


def test_a_difference_between_tokenizers_is_found(tmp_path: Path, sentencepiece_file: Path) -> None:
    ours = load_tokenizer(sentencepiece_file)
    write_tokenizer(sentencepiece_file, tmp_path, tokenizer=ours, n_ctx=64)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    file["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(RuntimeError, match="transformers reads"):
        compare_tokenizers(tmp_path, ours)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"add_dummy_prefix": True}, "it adds a space before a text"),
        ({"model_type": "unigram"}, "it is not a BPE model"),
        ({"byte_fallback": False}, "it has no byte fallback"),
        ({"user_defined_symbols": ["xyz"]}, "it has user-defined pieces"),
        (
            {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
            "'nmt_nfkc', and it removes spaces",
        ),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused(
    tmp_path: Path, training_text: str, settings: dict[str, Any], words: str
) -> None:
    usual = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text.splitlines() * 3),
        model_prefix=str(tmp_path / "other"),
        vocab_size=380,
        minloglevel=3,
        **{**usual, **settings},
    )
    source = tmp_path / "other.model"
    with pytest.raises(ConfigError, match=words):
        write_tokenizer(source, tmp_path, tokenizer=load_tokenizer(source), n_ctx=64)
    assert not (tmp_path / "tokenizer.json").exists()
