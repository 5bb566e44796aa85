"""The adapter between our model and lm-evaluation-harness. Import this only if `lm_eval` is installed (extra "eval").

The harness asks for log-likelihoods of continuations, log-likelihoods of whole texts, and generated text. Its own
functions tokenise pairs of texts and cut long texts into windows, so scores are comparable with its other backends.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows

from gpt.errors import ConfigError
from gpt.evaluation.batching.scoring import Request, Score, score
from gpt.evaluation.batching.shared_prefix import generate_sharing
from gpt.evaluation.few_shot.answer_settings import MAX_ANSWER_TOKENS, read_settings
from gpt.inference.model import InferenceModel, as_model
from gpt.inference.text_stream import GeneratedText
from gpt.model.gpt import GPT
from gpt.tokenizer.special_tokens import SpecialTokens, own_special_tokens
from gpt.tokenizer.tokenizers import Tokenizer

Progress = Callable[[int, int], None]  # requests finished, requests in all


class TriaxialLM(TemplateLM):  # type: ignore[misc]
    """A model and its tokenizer, as the harness uses them. Requests are sorted by length and batched by tokens.

    Every rank of a layout must pass the same requests in the same order; all get all answers.

    A context that is too long loses its beginning, as everywhere in the harness. `truncated` holds these contexts.
    """

    def __init__(
        self,
        model: GPT | InferenceModel,
        tokenizer: Tokenizer,
        *,
        n_ctx: int,
        batch_tokens: int = 8192,
        seed: int = 0,
        progress: Progress | None = None,
        special: SpecialTokens | None = None,
        sharing: bool = True,
    ) -> None:
        """`special`: the tokens that begin and end a text; default: the tokenizer's end-of-document token.
        `sharing` False reads every request whole, for comparison."""
        super().__init__()
        self.model = as_model(model)
        self.n_ctx = n_ctx
        self.batch_tokens = batch_tokens
        self.sharing = sharing
        self.truncated: set[str] = set()
        self._text = tokenizer
        self._special = own_special_tokens(tokenizer) if special is None else special
        self._device = self.model.device
        self._next_seed = seed
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._special.end_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self._special.begin_id

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return self.n_ctx

    @property
    def max_gen_toks(self) -> int:
        """The limit of new tokens for a task that sets none."""
        return MAX_ANSWER_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """The key of the harness's request caches."""
        return f"{self._text.name}-{self._text.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode a text, with the tokens that an imported tokenizer puts before it."""
        ids = self._text.encode(string)
        return ids if add_special_tokens is False else [*self._special.added_ids, *ids]

    def continuation_length(self, context: str, continuation: str) -> int:
        """Return the number of tokens of a continuation that are scored after this context."""
        if not context:
            return len(self.tok_encode(continuation, add_special_tokens=False))
        return len(self._encode_pair(context, continuation)[1])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and whether greedy decoding gives it."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scored = []
        for (context, continuation), context_ids, continuation_ids in requests:
            if len(continuation_ids) > self.n_ctx:
                raise ConfigError(
                    f"a continuation of {len(continuation_ids):,} tokens ('{continuation[:40]}...') is longer than the "
                    f"model's context of n_ctx = {self.n_ctx:,} tokens. Leave this task out."
                )
            # The harness moves a context's spaces to the continuation, which may leave no context.
            tokens = (context_ids or [self.prefix_token_id]) + continuation_ids
            if len(tokens) > self.n_ctx + 1:
                self.truncated.add(context)
            scored.append(Request(tokens[-(self.n_ctx + 1) :], len(continuation_ids)))
        answers = [(sum(s.log_probs), all(s.greedy)) for s in self._score(scored)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of each whole text, in windows of n_ctx tokens that overlap as little as
        possible."""
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for seen, predicted in get_rolling_token_windows(
                self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.n_ctx, context_len=1
            ):
                windows.append(Request([*seen, predicted[-1]], len(predicted)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, result in zip(owners, self._score(windows), strict=True):
            totals[owner] += sum(result.log_probs)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate text after each context, up to the first of its stop strings."""
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        texts = [""] * len(requests)
        note = self._counter(len(requests))
        for numbers in by_settings.values():
            answers = self._answers([requests[i] for i in numbers], progress=note)
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _contexts(self, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
        """Encode contexts and cut the beginning of those with more than `max_tokens` tokens."""
        prompts = []
        for text, own in zip(texts, self._text.encode_batch(texts), strict=True):
            ids = [*self._special.added_ids, *own]
            if len(ids) > max_tokens:
                self.truncated.add(text)
            prompts.append(ids[-max_tokens:] or [self.prefix_token_id])
        return prompts

    def _answers(self, requests: Sequence[Instance], *, progress: Callable[[int], None]) -> list[str]:
        """Generate the answers to requests with the same settings."""
        settings = read_settings(requests[0].args[1], default_tokens=self.max_gen_toks)
        max_tokens = settings.max_question_tokens(n_ctx=self.n_ctx)
        prompts = self._contexts([request.args[0] for request in requests], max_tokens=max_tokens)
        written = [
            GeneratedText(self._text, (), settings.until) for _ in prompts
        ]  # the harness decodes an answer without its context

        def is_stopped(number: int, tokens: list[int]) -> bool:
            if tokens[-1] not in self._special.end_ids:
                written[number].update(tokens)
            return written[number].stopped

        results = generate_sharing(
            self.model,
            prompts,
            n_ctx=self.n_ctx,
            max_new_tokens=settings.new_tokens,
            batch_tokens=self.batch_tokens,
            sampling=settings.sampling,
            seed=self._next_seed,
            stop_ids=self._special.end_ids,
            n_ids=self._text.vocab_size,
            watch=is_stopped,
            progress=progress,
            sharing=self.sharing,
        )
        self._next_seed += len(prompts)  # a repeated question draws other answers
        for text, result in zip(written, results, strict=True):
            text.finish([token for token in result.tokens if token not in self._special.end_ids])
        return [text.text for text in written]

    def _score(self, requests: list[Request]) -> list[Score]:
        note = self._counter(len(requests))
        return score(self.model, requests, batch_tokens=self.batch_tokens, progress=note, sharing=self.sharing)

    def _counter(self, total: int) -> Callable[[int], None]:
        finished = 0

        def note(n: int) -> None:
            nonlocal finished
            finished += n
            if self._progress is not None:
                self._progress(finished, total)

        return note
