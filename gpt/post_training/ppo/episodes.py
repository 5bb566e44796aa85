"""Episodes: prompts with the responses that a policy wrote, as rows of one length.

Shapes: n episodes, t = data.seq_len. A number at index i of a row of (n, t) belongs to the token at i + 1, which the
model predicts at i, as in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.post_training.ppo.rollouts import SampledResponse

COLUMNS: Mapping[str, torch.dtype] = MappingProxyType(  # the tensors of episodes
    {
        "numbers": torch.int64,
        "tokens": torch.int64,
        "prompt_tokens": torch.int64,
        "total_tokens": torch.int64,
        "log_probs": torch.float32,
        "ended": torch.bool,
    }
)


@dataclass(frozen=True)
class Episodes:
    """Episodes of a run, in one form for the sampler, the files and the updates.

    `numbers` (n,) int64 count the episodes of the run from 0. `tokens` (n, t) int64: prompt, response, and zeros.
    `prompt_tokens` and `total_tokens` (n,): lengths of the prompt, and of both. `log_probs` (n, t) fp32: the sampler's,
    0 outside of responses. `ended` (n,) bool: the response has an end token. `version`: the step of the weights that
    wrote them.
    """

    numbers: Tensor
    tokens: Tensor
    prompt_tokens: Tensor
    total_tokens: Tensor
    log_probs: Tensor
    ended: Tensor
    version: int

    def __len__(self) -> int:
        return self.tokens.size(0)

    @property
    def mask(self) -> Tensor:
        """(n, t) bool, True where a token of the response is predicted, its end token included."""
        index = torch.arange(self.tokens.size(1))
        return (index >= self.prompt_tokens[:, None] - 1) & (index < self.total_tokens[:, None] - 1)

    @property
    def response_tokens(self) -> Tensor:
        """(n,), the lengths of the responses."""
        return self.total_tokens - self.prompt_tokens

    @property
    def last(self) -> Tensor:
        """(n,), the index at which the last token of each response is predicted."""
        return self.total_tokens - 2

    def batch(self, **extra: Tensor) -> Batch:
        """A batch whose targets are the tokens of responses, with further tensors (n, t) for the loss."""
        mask = self.mask
        targets = self.tokens.roll(-1, dims=1).masked_fill(~mask, IGNORE)
        return Batch(self.tokens, targets, loss_mask=mask, lengths=self.total_tokens, extra=extra)

    def prompts(self) -> list[list[int]]:
        """The prompts as token ids."""
        return [row[:n].tolist() for row, n in zip(self.tokens, self.prompt_tokens.tolist(), strict=True)]

    def responses(self) -> list[list[int]]:
        """The responses as token ids, with their end tokens."""
        ends = zip(self.tokens, self.prompt_tokens.tolist(), self.total_tokens.tolist(), strict=True)
        return [row[start:stop].tolist() for row, start, stop in ends]

    def rows(self, start: int, stop: int) -> "Episodes":
        """Rows `start` to before `stop`."""
        columns = {name: getattr(self, name)[start:stop] for name in COLUMNS}
        return Episodes(**columns, version=self.version)

    def trimmed(self, multiple: int | None) -> "Episodes":
        """Without the columns behind the longest episode, rounded up to a multiple; None keeps all columns.

        Attention is causal, so what is left does not change.
        """
        if multiple is None:
            return self
        width = min(-(-int(self.total_tokens.max()) // multiple) * multiple, self.tokens.size(1))
        return replace(self, tokens=self.tokens[:, :width], log_probs=self.log_probs[:, :width])


def make_episodes(
    first: int, prompts: Sequence[Sequence[int]], responses: Sequence[SampledResponse], *, seq_len: int, version: int
) -> Episodes:
    """The episodes of prompts and their responses, from number `first` on. Each fits into `seq_len` tokens."""
    n = len(prompts)
    tokens, log_probs = torch.zeros(n, seq_len, dtype=torch.int64), torch.zeros(n, seq_len)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, stop = len(prompt), len(prompt) + len(response.tokens)
        tokens[row, :start] = torch.tensor(prompt)
        tokens[row, start:stop] = torch.tensor(response.tokens)
        log_probs[row, start - 1 : stop - 1] = torch.tensor(response.log_probs)
    prompt_tokens = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
    return Episodes(
        torch.arange(first, first + n),
        tokens,
        prompt_tokens,
        prompt_tokens + torch.tensor([len(response.tokens) for response in responses], dtype=torch.int64),
        log_probs,
        torch.tensor([response.ended for response in responses], dtype=torch.bool),
        version,
    )


def join(parts: Sequence[Episodes]) -> Episodes:
    """Parts as one. ConfigError: weights of several versions wrote them."""
    versions = sorted({part.version for part in parts})
    if len(versions) != 1:
        raise ConfigError(f"rollouts of one iteration were written by weights of several steps: {versions[:8]}")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
    return Episodes(**columns, version=parts[0].version)
