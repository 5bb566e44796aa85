"""Texts that the model writes while it trains, in RUN/samples.jsonl and on the console; changes no weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.sampling import Sampling
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.engine import Engine


@dataclass(frozen=True)
class Sampler:
    """Prompts to continue, equal on every rank. The same weights and step give the same texts on every layout that
    computes the same logits."""

    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    new_tokens: int
    sampling: Sampling

    def write(self, engine: Engine, *, step: int) -> list[str]:
        """The prompts with what follows them. Every rank calls it and has the result."""
        end = self.tokenizer.end_of_document_id
        prompts = [self.tokenizer.encode(prompt) or [end] for prompt in self.prompts]
        results = engine.generate(
            prompts,
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
    """What `sample_every_tokens` asks for, None without it. ConfigError: a prompt that does not fit the context."""
    if config.sample_every_tokens is None:
        return None
    for prompt in config.sample_prompts:
        length = max(1, len(tokenizer.encode(prompt)))
        if length + config.sample_new_tokens > n_ctx:
            raise ConfigError(
                f"train.sample_prompts: {prompt[:40]!r} has {length} tokens, and with train.sample_new_tokens = "
                f"{config.sample_new_tokens} they pass model.n_ctx = {n_ctx}; at most {n_ctx - length} fit"
            )
    return Sampler(
        tokenizer=tokenizer,
        prompts=config.sample_prompts,
        new_tokens=config.sample_new_tokens,
        sampling=Sampling(config.sample_temperature),
    )


def sample_records(*, step: int, prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    """What samples.jsonl has of each text."""
    pairs = zip(prompts, texts, strict=True)
    return [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]
