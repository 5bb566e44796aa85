"""A tokenizer of Hugging Face, and a folder with a small Llama."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 500 tokens, as GPT-2's and SmolLM2's are."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    from hugging_face_folders import TEXT

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT[:100_000]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    from hugging_face_folders import write_folder

    return write_folder(tmp_path_factory.mktemp("good") / "folder", tokenizer_json, "llama")
