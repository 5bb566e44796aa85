"""Prompts to continue, each with its length and seed, and a batch of them on its way through a model; reads no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.generation import Continuation, Watch, check_prompts, generate
from gpt.inference.model import InferenceModel
from gpt.inference.sampling import Sampling
from gpt.model.config import ModelConfig
from gpt.tokenizer.special_tokens import SpecialTokens
from gpt.tokenizer.tokenizers import Tokenizer

DEFAULT_NEW_TOKENS = 100
DEFAULT_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class PromptLine:
    """What is asked for: `fields` with a 'prompt', perhaps 'max_new_tokens' and 'seed', and where it stands."""

    fields: dict[str, Any]
    where: str = ""


@dataclass(frozen=True)
class GenerationJob:
    """One prompt to continue, and the fields that its result begins with."""

    fields: dict[str, Any]
    prompt: list[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class GenerationSettings:
    """How all jobs are continued, and how many at once."""

    sampling: Sampling
    stops: tuple[str, ...]
    end_ids: tuple[int, ...]  # tokens that end a text
    batch_size: int | None
    batch_tokens: int


def make_jobs(
    lines: Sequence[PromptLine],
    tokenizer: Tokenizer,
    special: SpecialTokens,
    model: ModelConfig,
    *,
    max_new_tokens: int | None,
    seed: int,
    num_samples: int,
) -> list[GenerationJob]:
    """`num_samples` jobs for each line, in order; sample j of the i-th line has `seed` + i * num_samples + j, or the
    line's own seed + j. No prompt starts a document; without a length, what fits of the default is generated.
    ConfigError names the first line whose prompt does not fit."""
    jobs = []
    prompts = tokenizer.encode_batch([line.fields["prompt"] for line in lines])
    for i, (line, ids) in enumerate(zip(lines, prompts, strict=True)):
        prompt = [*special.added_ids, *ids] or [special.begin_id]
        asked = line.fields.get("max_new_tokens")
        asked = max_new_tokens if asked is None else asked
        limit = max(1, min(DEFAULT_NEW_TOKENS, model.n_ctx - len(prompt))) if asked is None else asked
        try:
            check_prompts([prompt], n_ctx=model.n_ctx, max_new_tokens=limit, vocab_size=model.vocab_size)
        except ConfigError as error:
            raise ConfigError(f"{line.where}: {error}" if line.where else str(error)) from None
        first = line.fields.get("seed")
        first = seed + i * num_samples if first is None else first
        for sample in range(num_samples):
            numbered = {"sample": sample} if num_samples > 1 else {}
            jobs.append(
                GenerationJob({**line.fields, **numbered, "seed": first + sample}, prompt, limit, first + sample)
            )
    return jobs


def continue_batch(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: Sequence[GenerationJob],
    rules: GenerationSettings,
    *,
    n_ctx: int,
    watch: Watch,
) -> list[Continuation]:
    """All jobs at once, each up to its limit, the end of the document or where `watch` ends it."""
    return generate(
        model,
        [job.prompt for job in jobs],
        n_ctx=n_ctx,
        max_new_tokens=[job.max_new_tokens for job in jobs],
        sampling=rules.sampling,
        seed=[job.seed for job in jobs],
        stop_ids=rules.end_ids,
        n_ids=tokenizer.vocab_size,
        watch=watch,
    )
