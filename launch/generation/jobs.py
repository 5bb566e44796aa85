"""Turn prompts into generation jobs, each with its length and seed, and run a batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.generation import Continuation, Watch, check_prompts, generate
from gpt.inference.model import InferenceModel
from gpt.inference.sampling_settings import Sampling
from gpt.model.config import ModelConfig
from gpt.tokenizer.special_tokens import SpecialTokens
from gpt.tokenizer.tokenizers import Tokenizer
from launch.config.run_arguments import DEFAULT_NEW_TOKENS


@dataclass(frozen=True)
class PromptLine:
    """One prompt of the user: `fields` has 'prompt', and may have 'max_new_tokens' and 'seed'. `where`: for errors."""

    fields: dict[str, Any]
    where: str = ""


@dataclass(frozen=True)
class GenerationJob:
    """One prompt as token ids, and the fields that its result begins with."""

    fields: dict[str, Any]
    prompt: list[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of all jobs, and the limits of a batch."""

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
    """Make `num_samples` jobs for each line, in order.

    Sample j of line i has the seed `seed` + i * num_samples + j, or the line's own seed + j. An empty prompt starts a
    document. Without a length, a job gets the default length, or less if the context ends before.
    ConfigError: a prompt does not fit; names the first such line.
    """
    jobs = []
    prompts = tokenizer.encode_batch([line.fields["prompt"] for line in lines])
    for i, (line, ids) in enumerate(zip(lines, prompts, strict=True)):
        prompt = [*special.added_ids, *ids] or [special.begin_id]
        limit = line.fields.get("max_new_tokens")
        limit = max_new_tokens if limit is None else limit
        limit = max(1, min(DEFAULT_NEW_TOKENS, model.n_ctx - len(prompt))) if limit is None else limit
        try:
            check_prompts([prompt], n_ctx=model.n_ctx, max_new_tokens=limit, vocab_size=model.vocab_size)
        except ConfigError as error:
            raise ConfigError(f"{line.where}: {error}" if line.where else str(error)) from None
        first_seed = line.fields.get("seed")
        first_seed = seed + i * num_samples if first_seed is None else first_seed
        for sample in range(num_samples):
            numbered = {"sample": sample} if num_samples > 1 else {}
            jobs.append(
                GenerationJob(
                    {**line.fields, **numbered, "seed": first_seed + sample}, prompt, limit, first_seed + sample
                )
            )
    return jobs


def continue_batch(
    model: InferenceModel,
    tokenizer: Tokenizer,
    jobs: Sequence[GenerationJob],
    settings: GenerationSettings,
    *,
    n_ctx: int,
    watch: Watch,
) -> list[Continuation]:
    """Run all jobs in one batch. Each ends at its limit, at the end of the document, or when `watch` ends it."""
    return generate(
        model,
        [job.prompt for job in jobs],
        n_ctx=n_ctx,
        max_new_tokens=[job.max_new_tokens for job in jobs],
        sampling=settings.sampling,
        seed=[job.seed for job in jobs],
        stop_ids=settings.end_ids,
        n_ids=tokenizer.vocab_size,
        watch=watch,
    )
