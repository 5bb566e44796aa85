"""Long texts of a tokenizer.json by tiktoken have the ids of `tokenizers`, which gets none of them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gpt.tokenizer.byte_level import LongTexts, byte_level_pairs
from gpt.tokenizer.long_texts import LONG
from gpt.tokenizer.tokenizers import HuggingFaceTokenizer

tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
pytest.importorskip("tiktoken", reason="the extra 'data' is not installed")
WORDS = [
    "don't",
    "we'll",
    "''ll",
    "'s",
    "x" * 50,
    "!" * 50,
    " " * 50,
    "\n\t" * 9,
    "ab12",
    "12 3",
    "5's",
    "\u0416\u5b57",
]
WORDS += [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x85",
    "\x00",
    "\u0301",
    "1",
    "\u0663",
    "\u2167",
]


def trained(folder: Path, corpus: list[str], *, digits: bool) -> Path:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers
    byte_level = split.ByteLevel(add_prefix_space=False)
    model.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), byte_level]) if digits else byte_level
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=split.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],  # so that no id is the rank of its token
        show_progress=False,
    )
    model.train_from_iterator([*corpus, *WORDS * 9], trainer)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module", params=[False, True], ids=["byte level", "digits"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus: Any) -> Any:
    return HuggingFaceTokenizer(trained(tmp_path_factory.mktemp("json"), corpus, digits=request.param))


def long_texts(corpus: list[str]) -> list[str]:
    rng = random.Random(2)
    kinds = [[*WORDS, *corpus[:4]], WORDS, list("0123456789 "), list("abc ,;\t\n")]
    texts = ["".join(rng.choices(words, k=2 * LONG))[: LONG + 5000] for words in kinds]
    return [*texts, "\ta" * LONG, texts[0] + "\ud800"]


def test_the_ids_are_those_of_the_library_which_gets_no_long_text(
    tokenizer: HuggingFaceTokenizer, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time for a text of one token a byte is above ten seconds for 15 MiB."""
    texts = ["short", *long_texts(corpus), "", "short too"]
    expected = [
        tokenizer._model.encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False).ids for text in texts
    ]
    encode, sizes = tokenizer._encode, []
    monkeypatch.setattr(tokenizer, "_encode", lambda parts: sizes.extend(map(len, parts)) or encode(parts))
    found = tokenizer.encode_arrays(texts)
    assert [ids.tolist() for ids in found] == expected
    assert {ids.dtype for ids in found} == {found[0].dtype}
    assert max(sizes) <= max(map(len, WORDS)), "short texts, and those that try what the library adds"
    assert tokenizer.encode(texts[1]) == expected[1]


def test_characters_that_unicode_has_added_since_stay_with_the_library(tokenizer: HuggingFaceTokenizer) -> None:
    """Tables of two versions class them differently, so words would end elsewhere."""
    texts = LongTexts(tokenizer._model)
    assert texts.encode("word " * LONG) is not None
    assert texts.encode("word") is None
    for newer in ("\U0001f9ff", "\u0860", "\U000323b0"):
        assert texts.encode("word " * LONG + newer) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(normalizer={"type": "NFC"}),
        lambda file: file["pre_tokenizer"].update(add_prefix_space=True),
        lambda file: file["pre_tokenizer"].update(use_regex=False),
        lambda file: file["model"].update(ignore_merges=True),
        lambda file: file["model"].update(unk_token="a"),
        lambda file: file["added_tokens"][0].update(special=False),
        lambda file: file["model"]["merges"].reverse(),
    ],
)
def test_files_of_another_kind_stay_with_the_library(tmp_path: Path, corpus: list[str], change: Any) -> None:
    path = trained(tmp_path, corpus, digits=False)
    assert byte_level_pairs(tokenizers.Tokenizer.from_file(str(path))) is not None
    file = json.loads(path.read_text())
    change(file)
    assert byte_level_pairs(tokenizers.Tokenizer.from_str(json.dumps(file))) is None


def test_merges_that_no_training_finds_stay_with_the_library() -> None:
    """tiktoken would join a and bc to abc, which is no merge of this file."""
    vocab = {token: number for number, token in enumerate([*"abc", "bc", "ab", "abc"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert model.encode("abc").tokens == ["a", "bc"]
    assert byte_level_pairs(model) is None


def test_two_tokens_with_one_id_stay_with_the_library() -> None:
    """The library joins ids: its merge of a and b also applies to c, which has the id of a."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "c": 0}, [("a", "b")]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert model.encode("cb").ids == [2]
    assert byte_level_pairs(model) is None


def test_a_text_with_a_byte_that_the_vocabulary_lacks_stays_with_the_library() -> None:
    """The library leaves such a byte out."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = LongTexts(model)
    assert texts.encode("ab" * LONG) is not None
    assert texts.encode("ab" * LONG + "z") is None
