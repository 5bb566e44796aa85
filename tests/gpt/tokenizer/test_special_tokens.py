"""Special tokens, of our own models and of imported ones."""

import json
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.tokenizer.special_tokens import SpecialTokens, own_special_tokens, special_tokens_of
from gpt.tokenizer.tokenizers import load_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")


@pytest.fixture
def folder(tmp_path: Path, corpus: list[str]) -> Path:
    """A tokenizer.json with three special tokens, whose template begins every text with the first of them."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(corpus, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_an_imported_model_has_those_of_its_files(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer.json")

    def found() -> SpecialTokens:
        return special_tokens_of(folder, folder / "tokenizer.json", tokenizer)

    assert found() == own_special_tokens(tokenizer) == SpecialTokens(begin_id=1, end_ids=(1,))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    assert found() == SpecialTokens(begin_id=0, end_ids=(1,), added_ids=(0,))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1, 9999]}))
    assert found() == SpecialTokens(begin_id=0, end_ids=(1, 2), added_ids=(0,)), "an id beyond the vocabulary is none"
    config.write_text(json.dumps({"eos_token": "<|im_end|>"}))
    assert found().begin_id == 2, "transformers begins with the eos where there is no bos"
    for text, words in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        config.write_text(text)
        with pytest.raises(ConfigError, match=words):
            found()
