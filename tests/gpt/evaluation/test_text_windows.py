"""Texts in chunks have the tokens of the whole text; errors name the byte; corpora are read by document."""

from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.evaluation.text_windows import BLOCK_BYTES, TextChunk, corpus_documents, read_text, text_chunks
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

SENTENCE = "The parser of 1998 reads the source,\tthen 42 of its naïve lines; “each” prints a name 名前 and a number.\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(iter([SENTENCE * 3]), path, vocab_size=340)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return a tokenizer like GPT-2's, and one like Llama 2's that puts a space before every text."""
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


TEXTS = {
    "lines": SENTENCE * 1700,
    "paragraphs": "a  b\n\nc   d \n e\r\n\r\nf “g”\n\n\n" * 6000,
    "one line": SENTENCE.replace("\n", " ") * 1500,
    "no space": "名前とnumber、" * 9000,
    "only space": " \n" * 40000,
    "short": "x",
}


@pytest.mark.parametrize("name", TEXTS)
def test_chunks_have_the_tokens_of_the_whole_text(
    tmp_path: Path, tokenizer: Tokenizer, byte_level: dict[str, Tokenizer], name: str
) -> None:
    path, text = tmp_path / "text", TEXTS[name]
    path.write_text(text, newline="")
    for kind, one in {"sentencepiece": tokenizer, **byte_level}.items():
        chunks = list(text_chunks(path, one))
        assert [i for chunk in chunks for i in chunk.tokens] == one.encode(text), kind
        assert sum(chunk.words for chunk in chunks) == len(text.split()), kind
        assert sum(chunk.n_bytes for chunk in chunks) == path.stat().st_size, kind
        if name in ("lines", "paragraphs", "one line") and kind != "space_before":
            assert max(chunk.n_bytes for chunk in chunks) <= 2 * BLOCK_BYTES, kind
            assert len(chunks) > 2


def test_bytes_that_are_not_utf8_are_refused_with_their_index(tmp_path: Path) -> None:
    good = ("é" * BLOCK_BYTES).encode()
    for bad, index in ((good + b"\xff" + good, len(good)), (b"x" * (BLOCK_BYTES - 1) + b"\xc3(", BLOCK_BYTES - 1)):
        (tmp_path / "latin").write_bytes(bad)
        with pytest.raises(ConfigError, match=f"not UTF-8 text: invalid .* at byte {index:,}\\."):
            list(read_text(tmp_path / "latin"))
    (tmp_path / "cut").write_bytes(good[:-1])
    with pytest.raises(ConfigError, match=f"unexpected end of data at byte {len(good) - 2:,}"):
        list(read_text(tmp_path / "cut"))
    with pytest.raises(ConfigError, match="nowhere cannot be read: no such file"):
        list(read_text(tmp_path / "nowhere"))


def test_documents_of_a_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """They come without the token that ends each document, which is not text."""
    texts = [SENTENCE, "", "two words"]
    with TokenFileWriter(tmp_path / "corpus", vocab_size=tokenizer.vocab_size + 1) as file:
        for text in texts:
            file.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
        file.add_document(np.array(tokenizer.encode("no end")))
    expected = [
        TextChunk(tokenizer.encode(t), len(t.split()), len(t.encode())) for t in (SENTENCE, "two words", "no end")
    ]
    assert list(corpus_documents(TokenFile(tmp_path / "corpus"), tokenizer)) == [[chunk] for chunk in expected]
    with TokenFileWriter(tmp_path / "other", vocab_size=tokenizer.vocab_size + 1) as file:
        file.add_document(np.array([3, 4]))
        file.add_document(np.array([5, tokenizer.vocab_size]))
    with pytest.raises(ConfigError, match=r"other\.bin: token 3 is id 340, but tokenizer.model has ids 0 to 339"):
        list(corpus_documents(TokenFile(tmp_path / "other"), tokenizer))
