"""Jobs of prompt lines: seeds, lengths, the tokens of a prompt, and lines that do not fit."""

from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.tokenizer.special_tokens import own_special_tokens
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from launch.config.run_arguments import DEFAULT_NEW_TOKENS
from launch.generation.jobs import GenerationJob, PromptLine, make_jobs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_sentencepiece(iter(["The parser reads the source, then others follow.\n"] * 3), path, vocab_size=290)
    return load_tokenizer(path)


def jobs_of(
    tokenizer: Tokenizer, *lines: PromptLine, n_ctx: int = 64, max_new_tokens: int | None = None, num_samples: int = 1
) -> list[GenerationJob]:
    model = ModelConfig(vocab_size=290, n_ctx=n_ctx, n_layers=1, d_model=8, n_heads=1)
    special = own_special_tokens(tokenizer)
    return make_jobs(lines, tokenizer, special, model, max_new_tokens=max_new_tokens, seed=7, num_samples=num_samples)


def test_seeds_are_consecutive_or_the_lines_own(tokenizer: Tokenizer) -> None:
    lines = [PromptLine({"prompt": "The"}), PromptLine({"prompt": "The", "seed": 90}), PromptLine({"prompt": "The"})]
    jobs = jobs_of(tokenizer, *lines, num_samples=2)
    assert [job.seed for job in jobs] == [7, 8, 90, 91, 11, 12]
    assert [job.fields["seed"] for job in jobs] == [7, 8, 90, 91, 11, 12]
    assert [job.fields["sample"] for job in jobs] == [0, 1] * 3
    assert "sample" not in jobs_of(tokenizer, lines[0])[0].fields


def test_the_length_is_the_lines_own_the_options_or_the_default_within_the_context(tokenizer: Tokenizer) -> None:
    own, plain = PromptLine({"prompt": "The", "max_new_tokens": 3}), PromptLine({"prompt": "The"})
    length = len(tokenizer.encode("The"))
    assert [job.max_new_tokens for job in jobs_of(tokenizer, own, plain, max_new_tokens=5)] == [3, 5]
    assert jobs_of(tokenizer, plain)[0].max_new_tokens == 64 - length
    assert jobs_of(tokenizer, plain, n_ctx=1000)[0].max_new_tokens == DEFAULT_NEW_TOKENS


def test_an_empty_prompt_starts_a_document(tokenizer: Tokenizer) -> None:
    assert jobs_of(tokenizer, PromptLine({"prompt": ""}))[0].prompt == [tokenizer.end_of_document_id]


def test_an_error_names_the_line(tokenizer: Tokenizer) -> None:
    lines = PromptLine({"prompt": "The"}, "line 1"), PromptLine({"prompt": "The", "max_new_tokens": 64}, "line 2")
    with pytest.raises(ConfigError, match=r"^line 2: the prompt has .* n_ctx = 64"):
        jobs_of(tokenizer, *lines)
