"""How a task of lm-evaluation-harness wants its answers written, in our words; writes none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.inference.sampling import GREEDY, Sampling

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness takes the first given
_KNOWN = {*_LIMITS, "until", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
MAX_ANSWER_TOKENS = 256  # of an answer, for a task that does not say
_PLAIN = {"num_beams": 1, "use_cache": True}  # settings that ask for what is done anyway


@dataclass(frozen=True)
class AnswerSettings:
    """Strings that end an answer, the most tokens it has, and how each is chosen."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: Sampling

    def room(self, *, n_ctx: int) -> int:
        """Tokens that a question may have. ConfigError: none."""
        if self.new_tokens >= n_ctx:
            raise ConfigError(
                f"a task asks for {self.new_tokens:,} new tokens, which leaves no room for a question in the model's "
                f"context of n_ctx = {n_ctx:,} tokens; leave this task out"
            )
        return n_ctx - self.new_tokens


def read_settings(settings: Mapping[str, Any], *, most: int) -> AnswerSettings:
    """A task's `generation_kwargs`, read as the harness reads them; `most` tokens where it does not say.

    Without `do_sample`, a temperature above 0 asks for sampling. ConfigError: a setting that would change the answers
    and that we do not have, such as beams.
    """
    for key, value in settings.items():
        if key not in _KNOWN and value is not None and _PLAIN.get(key) != value:
            raise ConfigError(
                f"a task asks for answers with {key} = {value!r}, which is none of {', '.join(sorted(_KNOWN))}; "
                "leave this task out"
            )
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else until
    limit = next((settings[key] for key in _LIMITS if settings.get(key) is not None), most)
    temperature = settings.get("temperature")
    sampling = GREEDY
    if settings.get("do_sample") or (settings.get("do_sample") is None and temperature):
        top_k, top_p = settings.get("top_k"), settings.get("top_p")
        sampling = Sampling(
            temperature=1.0 if temperature is None else float(temperature),
            top_k=int(top_k) if top_k else None,  # transformers takes 0 as no filter
            top_p=None if top_p is None else float(top_p),
        )
    penalty = float(settings.get("repetition_penalty") or 1.0)
    if penalty != 1.0:
        sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, penalty)
    return AnswerSettings(tuple(stop for stop in stops if stop), int(limit), sampling)
