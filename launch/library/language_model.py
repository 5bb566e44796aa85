"""A trained model with its tokenizer, in one process."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.evaluation.perplexity import TextLoss, text_loss
from gpt.evaluation.text_windows import TextChunk
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.tokenizer.special_tokens import special_tokens_of
from gpt.tokenizer.tokenizers import Tokenizer
from launch.config.run_arguments import DEFAULT_BATCH_TOKENS
from launch.generation.jobs import GenerationSettings, PromptLine, make_jobs
from launch.generation.prompt_file import continue_jobs
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import DTYPES, LoadedRun, device_of, load_run


class WritingSettings(TypedDict, total=False):
    """How a model writes; all may be left out. They are the options of `triaxial generate`."""

    max_new_tokens: int | None
    """By default up to 100, as many as the context holds."""
    temperature: float
    """0 takes the most likely token. 0.8 by default."""
    top_k: int | None
    """Sample from so many of the most likely tokens."""
    top_p: float | None
    """Sample from the most likely tokens that reach this probability."""
    repetition_penalty: float
    """Above 1, tokens that the text already contains are less likely."""
    stop: Sequence[str]
    """Texts before which to end."""
    seed: int
    """The same seed gives the same text. 0 by default."""


class LanguageModel:
    """A trained model with its tokenizer, on one device. `load` opens one.

    Texts are strings, and token counts are by `tokenizer`. Wrong arguments raise ConfigError.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        saved = loaded.saved
        self.module: GPT = loaded.model
        """The torch module, without gradients: `module(tokens)` (b, t) gives logits (b, t, vocab_size)."""
        self.config: ModelConfig = saved.model_config
        """Sizes and switches of the model."""
        self.tokenizer: Tokenizer = saved.tokenizer
        """`encode(text)` and `decode(ids)`."""
        self.step: int = saved.step
        """The step of the checkpoint."""
        self.tokens_seen: int = saved.tokens_seen
        """Tokens of training up to the checkpoint."""
        self._model = LocalModel(loaded.model)
        self._special = special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer)

    def generate(self, prompt: str = "", **settings: Unpack[WritingSettings]) -> str:
        """Return the text that the model writes after a prompt. An empty prompt starts a document."""
        return self.generate_batch([prompt], **settings)[0]

    def generate_batch(self, prompts: Sequence[str], **settings: Unpack[WritingSettings]) -> list[str]:
        """Return the text after each prompt. Prompt i has the seed `seed` + i, and gets the same text as alone."""
        seed, stop = settings.get("seed", 0), settings.get("stop", ())
        if seed < 0 or "" in stop:
            raise ConfigError(
                f"seed = {seed} and stop = {list(stop)} are invalid: use a seed from 0, and texts to stop at"
            )
        jobs = make_jobs(
            [PromptLine({"prompt": text}) for text in prompts],
            self.tokenizer,
            self._special,
            self.config,
            max_new_tokens=settings.get("max_new_tokens"),
            seed=seed,
            num_samples=1,
        )
        how = GenerationSettings(
            sampling=Sampling(
                settings.get("temperature", 0.8),
                settings.get("top_k"),
                settings.get("top_p"),
                settings.get("repetition_penalty", 1.0),
            ),
            stops=tuple(stop),
            end_ids=self._special.end_ids,
            batch_size=None,
            batch_tokens=DEFAULT_BATCH_TOKENS,
        )
        lines = continue_jobs(self._model, self.tokenizer, jobs, how, n_ctx=self.config.n_ctx, shows=False)
        return [str(line["text"]) for line in lines]

    def score(self, text: str, *, stride: int | None = None) -> TextLoss:
        """Return the loss over a text of any length: `nats_per_token`, `bits_per_byte`, tokens, words and bytes.

        Each token is predicted once, from up to n_ctx tokens before it, in windows that move by `stride` tokens, by
        default half a context. `triaxial evaluate --text` gives the same figures.
        """
        stride = max(1, self.config.n_ctx // 2) if stride is None else stride
        if not 1 <= stride <= self.config.n_ctx:
            raise ConfigError(f"stride = {stride} is invalid: must be from 1 to n_ctx = {self.config.n_ctx}")
        chunk = TextChunk(self.tokenizer.encode(text), words=len(text.split()), n_bytes=len(text.encode()))
        return text_loss(
            self._model,
            [[chunk]],
            first_id=self._special.begin_id,
            window=self.config.n_ctx,
            stride=stride,
            batch_tokens=DEFAULT_BATCH_TOKENS,
        )

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one vector per text, (len(texts), d_model) fp32: the mean of its tokens' last hidden states.

        ConfigError: a text is empty, or longer than n_ctx tokens.
        """
        rows = [self.tokenizer.encode(text) for text in texts]
        for i, row in enumerate(rows):
            if not 1 <= len(row) <= self.config.n_ctx:
                raise ConfigError(
                    f"text {i} of embed has {len(row)} tokens: must be from 1 to n_ctx = {self.config.n_ctx}. Split it"
                )
        vectors = [self._hidden_states(row).float().mean(0) for row in rows]
        return torch.stack(vectors) if vectors else torch.empty(0, self.config.d_model)

    def _hidden_states(self, tokens: Sequence[int]) -> Tensor:
        """The last hidden states (t, d_model) of t tokens."""
        return self.module.hidden_states(torch.tensor([tokens], device=self._model.device))[0]


def load(run: str | Path, *, step: int | None = None, device: str = "auto", dtype: str = "float32") -> LanguageModel:
    """Open the model of a run directory, or of one checkpoint in it.

    `step`: the checkpoint of this step, by default the newest whole one. `device`: auto, cpu, cuda or cuda:N.
    `dtype`: float32 or bfloat16. ConfigError: no such run, a damaged checkpoint, or a device that is not there.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r} is invalid: must be one of {', '.join(DTYPES)}")
    return LanguageModel(load_run(Path(run), step=step, device=device_of(device), dtype=DTYPES[dtype]))
