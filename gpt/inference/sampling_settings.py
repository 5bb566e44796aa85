"""How the next token is chosen, as settings: commands check them before torch is imported."""

import math
from dataclasses import dataclass

from gpt.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """The rule that chooses the next token. Temperature 0 takes the most likely token and draws no random number.

    The steps, in order:
    1. Divide the logit of each token that the prompt or the text so far contains by `repetition_penalty`, or multiply
       it if it is negative (arXiv 1909.05858, section 4.1, in the form of transformers). This applies to temperature 0
       too.
    2. Divide the logits by `temperature`.
    3. Keep the `top_k` most likely tokens.
    4. Keep the fewest of these whose probabilities reach `top_p` (nucleus sampling, arXiv 1904.09751).
    5. Draw one token.

    None switches a filter off.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature = {self.temperature} is invalid: it must be 0 (greedy) or a positive number."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"top_k = {self.top_k} is invalid: it must be at least 1. Leave it out to keep every token."
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(
                f"top_p = {self.top_p} is invalid: it must be above 0 and at most 1. Leave it out to keep every token."
            )
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty = {self.repetition_penalty} is invalid: it must be a number above 0. Use 1 for no "
                "penalty."
            )


GREEDY = Sampling()
