"""Sample texts from the model during training, for RUN/samples.jsonl and the console. Does not change the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.generation import generate
from gpt.inference.sampling_settings import Sampling
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.engine import Engine


@dataclass(frozen=True)
class Sampler:
    """Prompts and how to generate after them, equal on every rank.

    The step is the seed, so equal logits give equal texts on every layout.
    """

    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    new_tokens: int
    sampling: Sampling
    n_ctx: int  # of the model

    def write(self, engine: Engine, *, step: int) -> list[str]:
        """Return the prompts with the generated text. Every rank must call it; all get the result."""
        end = self.tokenizer.end_of_document_id
        prompts = [self.tokenizer.encode(prompt) or [end] for prompt in self.prompts]
        with engine.as_model(together=True) as model:
            results = generate(
                model,
                prompts,
                n_ctx=self.n_ctx,
                max_new_tokens=self.new_tokens,
                sampling=self.sampling,
                seed=step,
                stop_ids=(end,),
                n_ids=self.tokenizer.vocab_size,
            )
        return [
            prompt + self.tokenizer.decode([token for token in result.tokens if token != end])
            for prompt, result in zip(self.prompts, results, strict=True)
        ]


def make_sampler(config: TrainConfig, tokenizer: Tokenizer, *, n_ctx: int) -> Sampler | None:
    """Return the sampler of `sample_every_tokens`, or None if it is not set. ConfigError: a prompt is too long."""
    if config.sample_every_tokens is None:
        return None
    for prompt in config.sample_prompts:
        length = max(1, len(tokenizer.encode(prompt)))
        if length + config.sample_new_tokens > n_ctx:
            raise ConfigError(
                f"train.sample_new_tokens = {config.sample_new_tokens} is invalid: with the {length} tokens of "
                f"train.sample_prompts {prompt[:40]!r} it exceeds model.n_ctx = {n_ctx}. Use at most {n_ctx - length}."
            )
    return Sampler(
        tokenizer=tokenizer,
        prompts=config.sample_prompts,
        new_tokens=config.sample_new_tokens,
        sampling=Sampling(config.sample_temperature),
        n_ctx=n_ctx,
    )


def sample_records(*, step: int, prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines of samples.jsonl."""
    pairs = zip(prompts, texts, strict=True)
    return [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]
