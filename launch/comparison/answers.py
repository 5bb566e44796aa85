"""The answers of a run to the prompts of a comparison: generated here, or read from a file of `triaxial generate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_lines
from gpt.inference.cpu_model import packed
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from gpt.tokenizer.special_tokens import SpecialTokens, special_tokens_of
from launch.comparison.prompts import ComparedPrompt
from launch.config.run_arguments import DEFAULT_BATCH_TOKENS
from launch.generation.chat import ChatPrompt, ChatSettings, answer_chats, chat_jobs
from launch.generation.jobs import GenerationJob, GenerationSettings, PromptLine, make_jobs
from launch.generation.prompt_file import batches_of, continue_jobs
from launch.runs.chat_format import chat_encoder
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import LoadedRun, SavedRun, load_run, open_run


@dataclass(frozen=True)
class ComparedSettings:
    """How every model of a comparison answers."""

    sampling: Sampling
    max_new_tokens: int | None
    seed: int
    stops: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype


def answers_of(path: Path, prompts: Sequence[ComparedPrompt], settings: ComparedSettings) -> list[str]:
    """Return the answer of a run, or of a file of `triaxial generate --output`, to each prompt.

    One process; the model is freed before return. ConfigError: as check_answers.
    """
    if path.is_file():
        return _read(path, prompts)
    loaded = load_run(path, device=settings.device, dtype=settings.dtype)
    chats = [prompt.chat for prompt in prompts if prompt.chat is not None]
    if not chats:
        return _continued(loaded, [prompt.line for prompt in prompts], settings)
    model = packed(LocalModel(loaded.model), rows=len(chats))
    with chat_encoder(loaded.saved) as encoder:
        how, seeds = _chat_settings(settings), _seeds(settings, chats)
        return answer_chats(model, loaded.saved, encoder, chats, how, seeds=seeds)


def check_answers(path: Path, prompts: Sequence[ComparedPrompt], settings: ComparedSettings) -> None:
    """Load no model. ConfigError: this is no run, or a prompt does not fit its context or is not in the file."""
    if path.is_file():
        _read(path, prompts)
        return
    saved = open_run(path)
    chats = [prompt.chat for prompt in prompts if prompt.chat is not None]
    if not chats:
        _jobs(saved, [prompt.line for prompt in prompts], settings)
        return
    with chat_encoder(saved) as encoder:
        chat_jobs(saved, encoder, chats, _chat_settings(settings), seeds=_seeds(settings, chats))


def _chat_settings(settings: ComparedSettings) -> ChatSettings:
    return ChatSettings(settings.sampling, settings.max_new_tokens, stops=settings.stops, shows=True)


def _seeds(settings: ComparedSettings, chats: Sequence[ChatPrompt]) -> range:
    return range(settings.seed, settings.seed + len(chats))


def _read(path: Path, prompts: Sequence[ComparedPrompt]) -> list[str]:
    texts: dict[str, list[str]] = {}  # by the JSON of the prompt, which is a text or messages
    for where, fields in read_json_lines(path, option="RUN"):
        text = fields.get("text")
        if not isinstance(text, str):
            raise ConfigError(f"{where} has no text 'text'. Give a file that `triaxial generate --output` wrote.")
        texts.setdefault(json.dumps(fields.get("prompt"), sort_keys=True), []).append(text)
    found = []
    for prompt in prompts:
        given = texts.get(json.dumps(prompt.shown, sort_keys=True))
        if not given:
            raise ConfigError(f"RUN {path} has no answer to the prompt of {prompt.line.where}. Use the same prompts.")
        found.append(given.pop(0) if len(given) > 1 else given[0])
    return found


def _continued(loaded: LoadedRun, lines: Sequence[PromptLine], settings: ComparedSettings) -> list[str]:
    saved = loaded.saved
    special, jobs = _jobs(saved, lines, settings)
    how = GenerationSettings(
        sampling=settings.sampling,
        stops=settings.stops,
        end_ids=special.end_ids,
        batch_size=None,
        batch_tokens=DEFAULT_BATCH_TOKENS,
    )
    model = LocalModel(loaded.model)
    rows = max(len(batch) for batch in batches_of(jobs, how, data_size=model.data_size))
    results = continue_jobs(
        packed(model, rows=rows), saved.tokenizer, jobs, how, n_ctx=saved.model_config.n_ctx, shows=True
    )
    return [str(result["text"]) for result in results]


def _jobs(
    saved: SavedRun, lines: Sequence[PromptLine], settings: ComparedSettings
) -> tuple[SpecialTokens, list[GenerationJob]]:
    special = special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer)
    jobs = make_jobs(
        lines,
        saved.tokenizer,
        special,
        saved.model_config,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        num_samples=1,
    )
    return special, jobs
