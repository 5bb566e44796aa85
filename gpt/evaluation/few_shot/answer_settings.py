"""Read how a task of lm-evaluation-harness wants its answers generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.sampling_settings import GREEDY, Sampling

_LIMITS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the harness takes the first that is set
_KNOWN = {*_LIMITS, "until", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
MAX_ANSWER_TOKENS = 256  # for a task that sets no limit
_NO_EFFECT = {"num_beams": 1, "use_cache": True}  # these values describe what we do anyway


@dataclass(frozen=True)
class AnswerSettings:
    """Strings that end an answer, its maximum number of tokens, and the sampling."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: Sampling

    def max_question_tokens(self, *, n_ctx: int) -> int:
        """Return how many tokens the context has left for a question. ConfigError: none."""
        if self.new_tokens >= n_ctx:
            raise ConfigError(
                f"a task asks for {self.new_tokens:,} new tokens, which leaves no room for a question in the model's "
                f"context of n_ctx = {n_ctx:,} tokens. Leave this task out."
            )
        return n_ctx - self.new_tokens


def read_settings(settings: Mapping[str, Any], *, default_tokens: int) -> AnswerSettings:
    """Read a task's `generation_kwargs` as the harness does. `default_tokens`: the limit if the task sets none.

    Without `do_sample`, a temperature above 0 means sampling. ConfigError: a setting that would change the answers and
    that we do not support, such as beam search.
    """
    for key, value in settings.items():
        if key not in _KNOWN and value is not None and _NO_EFFECT.get(key) != value:
            raise ConfigError(
                f"a task asks for answers with {key} = {value!r}. Supported are {', '.join(sorted(_KNOWN))}. Leave "
                "this task out."
            )
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else until
    limit = next((settings[key] for key in _LIMITS if settings.get(key) is not None), default_tokens)
    temperature = settings.get("temperature")
    sampling = GREEDY
    if settings.get("do_sample") or (settings.get("do_sample") is None and temperature):
        top_k, top_p = settings.get("top_k"), settings.get("top_p")
        sampling = Sampling(
            temperature=1.0 if temperature is None else float(temperature),
            top_k=int(top_k) if top_k else None,  # 0 means no filter in transformers
            top_p=None if top_p is None else float(top_p),
        )
    penalty = float(settings.get("repetition_penalty") or 1.0)
    if penalty != 1.0:
        sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, penalty)
    return AnswerSettings(tuple(stop for stop in stops if stop), int(limit), sampling)
