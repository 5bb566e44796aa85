"""Sliding windows against one forward pass a token in float64; texts in pieces against the whole text."""

import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.evaluation.perplexity import TextLoss, perplexity, sliding_windows, text_loss
from gpt.evaluation.text_windows import BLOCK_BYTES, TextChunk, corpus_documents, read_text, text_chunks
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

N_CTX = 12
CONFIG = ModelConfig(vocab_size=300, n_ctx=N_CTX, n_layers=1, d_model=32, n_heads=4, init_std=0.3)
SENTENCE = "The parser of 1998 reads the source,\tthen 42 of its naïve lines; “each” prints a name 名前 and a number.\n"


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(iter([SENTENCE * 3]), path, vocab_size=340)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """GPT-2's kind of vocabulary, and one like Llama 2's that puts a space before every text."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    folder = tmp_path_factory.mktemp("byte_level")
    found = {}
    for name in ("gpt2", "space_before"):
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=name == "space_before")
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator([SENTENCE, "a  b\n\nc   d \n e\r\n\r\nf "] * 5, trainer)
        made.save(str(folder / f"{name}.json"))
        found[name] = load_tokenizer(folder / f"{name}.json")
    return found


# Windows


@pytest.mark.parametrize("stride", [1, 5, 6, N_CTX])
@pytest.mark.parametrize("n_tokens", [1, 4, N_CTX, N_CTX + 1, 40])
def test_each_token_is_predicted_once_in_its_own_window(model: GPT, n_tokens: int, stride: int) -> None:
    """Against a forward pass of its own for every token, in float64, over the context that the rule gives it."""
    rng = random.Random(n_tokens)
    tokens = [rng.randrange(1, 300) for _ in range(n_tokens)]
    cuts = sorted(rng.choices(range(n_tokens + 1), k=3))
    pieces = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, n_tokens], strict=True)]
    exact = copy.deepcopy(model).double()
    expected = 0.0
    whole = [0, *tokens]
    for place in range(1, n_tokens + 1):
        start = max(0, math.ceil((place - N_CTX) / stride)) * stride
        assert start == 0 or N_CTX - stride + 1 <= place - start <= N_CTX
        logits = exact(torch.tensor([whole[start:place]]))[0, -1]
        expected -= float(logits.log_softmax(-1)[whole[place]])
    documents = [[TextChunk(piece, 1, 2) for piece in pieces]]
    loss = text_loss(model, documents, first_id=0, window=N_CTX, stride=stride, batch_tokens=100)
    assert loss == TextLoss(pytest.approx(expected, rel=1e-5), n_tokens, 4, 8)
    assert loss.nats_per_token == pytest.approx(expected / n_tokens, rel=1e-5)
    assert loss.nats_per_word == pytest.approx(expected / 4, rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(expected / 8 / math.log(2), rel=1e-5)


def test_a_token_does_not_depend_on_where_its_document_ends() -> None:
    tokens = list(range(1, 60))
    whole = list(sliding_windows([tokens], first_id=0, window=N_CTX, stride=5))
    for n in range(1, 60):
        part = list(sliding_windows([tokens[:n]], first_id=0, window=N_CTX, stride=5))
        assert part[:-1] == whole[: len(part) - 1]
        last = whole[len(part) - 1].tokens
        assert part[-1].tokens == last[: len(part[-1].tokens)]
        assert sum(one.n_scored for one in part) == n


def test_documents_are_read_as_they_are_scored(model: GPT) -> None:
    """A corpus never lies in memory whole: after so many documents some have been scored."""
    ahead = most = 0

    def documents() -> Iterator[list[TextChunk]]:
        nonlocal ahead, most
        for _ in range(1000):
            ahead += 1
            most = max(most, ahead)
            yield [TextChunk([1, 2, 3], 1, 1)]

    def scored(*_: object) -> None:
        nonlocal ahead
        ahead = 0

    assert model.norm is not None
    hook = model.norm.register_forward_hook(scored)
    loss = text_loss(model, documents(), first_id=0, window=N_CTX, stride=6, batch_tokens=60)
    hook.remove()
    assert (loss.tokens, loss.words) == (3000, 1000)
    assert most <= 64


def test_means_of_nothing_and_of_too_much() -> None:
    nothing = TextLoss() + TextLoss(nats=7.0, tokens=1)
    assert (nothing.nats_per_token, nothing.nats_per_word, nothing.bits_per_byte) == (7.0, None, None)
    assert perplexity(nothing.nats_per_word) is None
    assert perplexity(701.0) is None
    assert perplexity(math.log(5)) == pytest.approx(5)


# Texts


TEXTS = {
    "lines": SENTENCE * 1700,
    "paragraphs": "a  b\n\nc   d \n e\r\n\r\nf “g”\n\n\n" * 6000,
    "one line": SENTENCE.replace("\n", " ") * 1500,
    "no space": "名前とnumber、" * 9000,
    "only space": " \n" * 40000,
    "short": "x",
}


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_the_whole_text(
    tmp_path: Path, tokenizer: Tokenizer, byte_level: dict[str, Tokenizer], name: str
) -> None:
    path, text = tmp_path / "text", TEXTS[name]
    path.write_text(text, newline="")
    for kind, one in {"sentencepiece": tokenizer, **byte_level}.items():
        pieces = list(text_chunks(path, one))
        assert [i for piece in pieces for i in piece.tokens] == one.encode(text), kind
        assert sum(piece.words for piece in pieces) == len(text.split()), kind
        assert sum(piece.n_bytes for piece in pieces) == path.stat().st_size, kind
        if name in ("lines", "paragraphs", "one line") and kind != "space_before":
            assert max(piece.n_bytes for piece in pieces) <= 2 * BLOCK_BYTES, kind
            assert len(pieces) > 2


def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path) -> None:
    good = ("é" * BLOCK_BYTES).encode()
    for bad, place in ((good + b"\xff" + good, len(good)), (b"x" * (BLOCK_BYTES - 1) + b"\xc3(", BLOCK_BYTES - 1)):
        (tmp_path / "latin").write_bytes(bad)
        with pytest.raises(ConfigError, match=f"not UTF-8 text: invalid .* at byte {place:,};"):
            list(read_text(tmp_path / "latin"))
    (tmp_path / "cut").write_bytes(good[:-1])
    with pytest.raises(ConfigError, match=f"unexpected end of data at byte {len(good) - 2:,}"):
        list(read_text(tmp_path / "cut"))
    with pytest.raises(ConfigError, match="nowhere cannot be read: no such file"):
        list(read_text(tmp_path / "nowhere"))


def test_documents_of_a_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Without the token that ends each, which is no text."""
    texts = [SENTENCE, "", "two words"]
    with TokenFileWriter(tmp_path / "corpus", vocab_size=tokenizer.vocab_size + 1) as file:
        for text in texts:
            file.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
        file.add_document(np.array(tokenizer.encode("no end")))
    expected = [
        TextChunk(tokenizer.encode(t), len(t.split()), len(t.encode())) for t in (SENTENCE, "two words", "no end")
    ]
    assert list(corpus_documents(TokenFile(tmp_path / "corpus"), tokenizer)) == [[piece] for piece in expected]
    with TokenFileWriter(tmp_path / "other", vocab_size=tokenizer.vocab_size + 1) as file:
        file.add_document(np.array([3, 4]))
        file.add_document(np.array([5, tokenizer.vocab_size]))
    with pytest.raises(ConfigError, match=r"other\.bin: token 3 is id 340, but tokenizer.model has ids 0 to 339"):
        list(corpus_documents(TokenFile(tmp_path / "other"), tokenizer))
