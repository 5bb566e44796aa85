"""Generate the assistant's answers to conversations, in the chat format of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.conversations.chat_format import ChatEncoder
from data_prep.conversations.conversation import Turn, UnusableRecord
from gpt.errors import ConfigError
from gpt.inference.generation import check_prompts
from gpt.inference.model import InferenceModel
from gpt.inference.sampling_settings import Sampling
from gpt.tokenizer.special_tokens import special_tokens_of
from launch.config.run_arguments import DEFAULT_BATCH_TOKENS, DEFAULT_NEW_TOKENS
from launch.generation.jobs import GenerationJob, GenerationSettings
from launch.generation.prompt_file import continue_jobs
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import SavedRun


@dataclass(frozen=True)
class ChatPrompt:
    """The turns before an answer, the last one of the user, and where they come from, for errors."""

    turns: tuple[Turn, ...]
    where: str


@dataclass(frozen=True)
class ChatSettings:
    """How to answer: `max_new_tokens`, or without it `default_new_tokens`, or fewer if the context ends before."""

    sampling: Sampling
    max_new_tokens: int | None = None
    default_new_tokens: int = DEFAULT_NEW_TOKENS
    stops: tuple[str, ...] = ()
    shows: bool = False  # a progress bar


def answer_chats(
    model: InferenceModel,
    saved: SavedRun,
    encoder: ChatEncoder,
    prompts: Sequence[ChatPrompt],
    settings: ChatSettings,
    *,
    seeds: Sequence[int],
) -> list[str]:
    """Return the answer to each prompt, without its end token and without white space around it.

    Every rank of a layout must call it; all get all answers. ConfigError: the format refuses a prompt, or it does not
    fit into the context; names the first such.
    """
    if not prompts:
        return []
    jobs = chat_jobs(saved, encoder, prompts, settings, seeds=seeds)
    special = special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer)
    how = GenerationSettings(
        sampling=settings.sampling,
        stops=settings.stops,
        end_ids=tuple(dict.fromkeys([*encoder.end_ids, *special.end_ids])),
        batch_size=None,
        batch_tokens=DEFAULT_BATCH_TOKENS,
    )
    lines = continue_jobs(model, saved.tokenizer, jobs, how, n_ctx=saved.model_config.n_ctx, shows=settings.shows)
    return [str(line["text"]).strip() for line in lines]


def chat_jobs(
    saved: SavedRun,
    encoder: ChatEncoder,
    prompts: Sequence[ChatPrompt],
    settings: ChatSettings,
    *,
    seeds: Sequence[int],
) -> list[GenerationJob]:
    """Return what to generate for each prompt. ConfigError: as answer_chats. No model is needed."""
    return [_job(prompt, saved, encoder, settings, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def _job(
    prompt: ChatPrompt, saved: SavedRun, encoder: ChatEncoder, settings: ChatSettings, *, seed: int
) -> GenerationJob:
    model = saved.model_config
    try:
        ids = encoder.prompt(prompt.turns)
        limit = settings.max_new_tokens or max(1, min(settings.default_new_tokens, model.n_ctx - len(ids)))
        check_prompts([ids], n_ctx=model.n_ctx, max_new_tokens=limit, vocab_size=model.vocab_size)
    except UnusableRecord as error:
        raise ConfigError(f"{prompt.where} cannot be written in the chat format: {error}.") from None
    except ConfigError as error:
        raise ConfigError(f"{prompt.where}: {error}") from None
    return GenerationJob({}, ids, limit, seed)
