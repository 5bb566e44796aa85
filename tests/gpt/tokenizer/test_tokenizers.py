"""Tokenizers are reversible, training is deterministic, and wrong files give clear errors."""

import random
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.tokenizer.long_texts import LONG, MAX_PART, cut_text
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

SHARED = Path(__file__).parents[4] / "shared/data"


@pytest.fixture(scope="module")
def tokenizer(model) -> Tokenizer:
    return load_tokenizer(model)


def test_decoding_gives_every_text_back(tokenizer, corpus, awkward):
    letters = [chr(c) for c in range(0x3000)] + list("▁ \n\t\x00🎉") * 100
    rng = random.Random(1)
    texts = awkward + corpus[:4] + ["".join(rng.choices(letters, k=rng.randrange(40))) for _ in range(500)]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == batch
    for text, ids in zip(texts, batch, strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.end_of_document_id not in ids, "text must never give the end-of-document token"


def test_long_texts_have_the_ids_of_the_whole_text(tokenizer, corpus, awkward):
    rng = random.Random(5)
    texts = ["".join(rng.choices([*corpus[:9], *awkward, " ", "\n"], k=20_000)).replace("\u2581", "")[:300_000]]
    texts.append("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=200_000)))  # no blank
    for text in texts:
        assert len(list(cut_text(text, tokenizer._may_cut))) > 1
        assert tokenizer.encode(text) == tokenizer._model.encode(text)
        assert tokenizer.encode_arrays(["a", text, "b"])[1].tolist() == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("\ud800 \u2581" * LONG)) == "\ufffd \u2581" * LONG


@pytest.mark.parametrize("text", [" " * 400_000, "one word " * 40_000])
def test_the_library_gets_a_long_text_in_parts(tokenizer, monkeypatch, text):
    """Its time and memory for each character grow with the text."""
    whole, encode, sizes = tokenizer._model.encode(text), tokenizer._encode, []
    monkeypatch.setattr(tokenizer, "_encode", lambda texts: sizes.extend(map(len, texts)) or encode(texts))
    assert tokenizer.encode_arrays([text])[0].tolist() == whole
    assert sum(sizes) == len(text)
    assert max(sizes) <= MAX_PART


def test_a_run_of_blanks_is_tried_at_its_first_blank_only():
    tried = []
    text = "a" * 2 * LONG + " " * 2 * LONG
    assert "".join(cut_text(text, lambda text, at: tried.append(at))) == text
    far = [at for at in tried if text[at] == " " and text[at - 1] == " "]
    assert len(far) < 20_000, "those near the earliest position of the cut, but not all"


def test_digits_are_single_pieces_and_runs_of_spaces_are_not(tokenizer):
    assert len(tokenizer.encode("12345")) == 5
    assert len(tokenizer.encode("    ")) < 4


def test_the_attributes_of_a_tokenizer(tokenizer, model):
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.end_of_document_id, tokenizer.name) == (400, 1, "t.model")
    assert tokenizer.decode([tokenizer.end_of_document_id]) == ""
    assert len(tokenizer.fingerprint) == 64


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_training_is_deterministic(tmp_path, model, corpus):
    train_sentencepiece(iter(corpus), tmp_path / "again.model", vocab_size=400)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_the_error_for_an_impossible_vocabulary_names_a_possible_one(tmp_path, corpus):
    with pytest.raises(ConfigError, match=r"vocab_size = 90000 is invalid: .* Use vocab_size = (\d+)") as caught:
        train_sentencepiece(iter(corpus), tmp_path / "t.model", vocab_size=90_000)
    possible = int(str(caught.value).split("Use vocab_size = ")[1].split()[0])
    with pytest.raises(ConfigError, match=r"vocab_size = 260 is invalid: .* above \d+ or a lower"):
        train_sentencepiece(iter(corpus), tmp_path / "t.model", vocab_size=260)
    with pytest.raises(ConfigError, match="no text"):
        train_sentencepiece(iter([]), tmp_path / "t.model", vocab_size=400)
    assert list(tmp_path.iterdir()) == []
    train_sentencepiece(iter(corpus), tmp_path / "t.model", vocab_size=possible)
    assert load_tokenizer(tmp_path / "t.model").vocab_size == possible


def test_files_that_are_not_tokenizers_are_refused(tmp_path, tokenizer):
    for name, content, message in [
        ("missing.model", None, "no such tokenizer file"),
        ("bad.model", b"not a model", "not a sentencepiece model"),
        ("words.txt", b"a", r"is not a tokenizer\. Use a sentencepiece \.model"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_tokenizer(tmp_path / name)
    with pytest.raises(ConfigError, match="token id 400 is outside"):
        tokenizer.decode([5, 400])


def test_hugging_face_files_are_read(tmp_path, corpus, awkward):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(corpus, trainer)
    model.enable_padding(length=64)
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.end_of_document_id == 0
    for text in [*awkward, *corpus[:4]]:
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_document_id not in ids, "a page must not end its own document"
        assert tokenizer.decode(ids) == text
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a Hugging Face tokenizer"):
        load_tokenizer(tmp_path / "bad.json")


def test_gpt2_file_gives_gpt2_ids():
    pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    path = SHARED / "tokenizer/gpt2-tokenizer.json"
    if not path.exists():
        pytest.skip("../shared/data is absent")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.end_of_document_id) == (50_257, 50_256)
    assert tokenizer.encode("Hello world") == [15496, 995]
