"""Tokenizers for the tests of conversations: byte-level ones of Hugging Face, with and without special tokens."""

import json

import pytest

TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "Hello there, how are you today?\n\n", "one two three four"]


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory):
    """make_tokenizer(special tokens, template=None): the path of a tokenizer.json in a folder of its own."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")

    def make(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), template=None):
        folder = tmp_path_factory.mktemp("tokenizer")
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
        model.train_from_iterator(TEXTS * 3, trainer)
        model.save(str(folder / "tokenizer.json"))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
            names = {"eos_token": special[-1], "pad_token": special[0]}
            (folder / "tokenizer_config.json").write_text(json.dumps(names))
        return folder / "tokenizer.json"

    return make
