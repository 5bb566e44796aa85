"""Choose a model and its training from one dial: parameters, depth, tokens or time."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt3_sizes import (
    max_batch_tokens,
    peak_learning_rate,
    shape_of_depth,
    shape_of_parameters,
)

TOKENS_PER_PARAMETER = 20  # Chinchilla, arXiv 2203.15556
# Repeated text is worth as much as new text up to 4 times, and little after 16 times: arXiv 2305.16264.
GOOD_EPOCHS, MAX_EPOCHS = 4, 16
MIN_PARAMETERS = 1_000_000  # unless the text is small
LEAST_PARAMETERS = 50_000  # of a model for a given time
STEPS = 2_000  # that a short run should have at least
DEFAULT_TIME_S = 3600.0
SMALL_FLOPS = 6e13  # two cores of a laptop do them in DEFAULT_TIME_S or less
_SEQUENCES = ((100e6, 2048), (30e6, 1024), (5e6, 512), (0, 256))  # parameters from which on: tokens of context
_MIN_SEQ_LEN, _MIN_BATCH_SEQS = 32, 8
_MICRO_TOKENS = {"cpu": 4_096, "cuda": 32_768}


@dataclass(frozen=True)
class Dials:
    """The dials that the user may set, each None if not given. `tokens`: 0 means Chinchilla's rule."""

    parameters: float | None = None
    depth: int | None = None
    tokens: int | None = None
    time_s: float | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None and self.depth is not None:
            raise ConfigError("--params and --depth both choose the model's size. Give one of them")
        if self.tokens and self.time_s is not None:
            raise ConfigError("--tokens and --time both choose the length of training. Give one of them")


@dataclass(frozen=True)
class Machine:
    """Where the model is trained: the kind of device, and the number of processes."""

    device: str
    n_processes: int


@dataclass(frozen=True)
class Training:
    """A model and its training. `why` has a line for each choice that the user should know."""

    model: ModelConfig
    seq_len: int
    micro_batch_size: int
    batch_tokens: int
    total_tokens: int
    learning_rate: float
    precision: str
    epochs: float
    tokens_per_s: float | None
    why: tuple[str, ...]


Measure = Callable[[Training], float]  # tokens/s of real steps


def choose_training(
    dials: Dials, *, corpus_tokens: int, vocab_size: int, validation_share: float, machine: Machine, measure: Measure
) -> Training:
    """Choose a model and the length of its training for a corpus. `measure` is called if the time matters.

    With neither a size nor a length, the model gets GOOD_EPOCHS of the corpus at 20 tokens a parameter, and as much as
    this machine trains in an hour at most.
    """
    small = max(corpus_tokens * min(validation_share, 0.5), corpus_tokens / 40)  # tokens of the smaller split
    fit = _Fit(vocab_size, int(small), machine)
    size, wanted, time_s = dials.parameters, dials.tokens or None, dials.time_s
    if dials.depth is not None:
        size = shape_of_depth(dials.depth, vocab_size=vocab_size, n_ctx=256).parameters
    if wanted is not None and size is None:
        size = wanted / TOKENS_PER_PARAMETER
    floor = min(MIN_PARAMETERS, 3 * corpus_tokens)
    if size is None and time_s is None:
        size = max(floor, GOOD_EPOCHS * corpus_tokens / TOKENS_PER_PARAMETER)
        return _within(fit, size, corpus_tokens, measure)
    if size is None:
        assert time_s is not None
        return _for_time(fit, floor, time_s, corpus_tokens, measure)
    plan = fit.plan(size, TOKENS_PER_PARAMETER * size, depth=dials.depth)
    if time_s is not None:
        speed = measure(plan)
        return _bounded(fit, replace(plan, tokens_per_s=speed), speed * time_s, corpus_tokens)
    if wanted is not None:
        return _finished(fit, plan, wanted, corpus_tokens, ())
    return _bounded(fit, plan, TOKENS_PER_PARAMETER * plan.model.parameters, corpus_tokens)


@dataclass(frozen=True)
class _Fit:
    """Makes plans for a size: the context, the batch and the micro-batch that fit it."""

    vocab_size: int
    small_split_tokens: int
    machine: Machine

    def plan(self, parameters: float, tokens: float, *, depth: int | None = None) -> Training:
        seq_len = next(length for least, length in _SEQUENCES if parameters >= least)
        while seq_len > _MIN_SEQ_LEN and self.small_split_tokens < 2 * seq_len:
            seq_len //= 2
        if depth is None:
            model = shape_of_parameters(parameters, vocab_size=self.vocab_size, n_ctx=seq_len)
        else:
            model = shape_of_depth(depth, vocab_size=self.vocab_size, n_ctx=seq_len)
        return self.batched(model, seq_len, tokens)

    def batched(self, model: ModelConfig, seq_len: int, tokens: float) -> Training:
        """Return the training of a model over this many tokens, in steps that fit their number."""
        n = self.machine.n_processes
        seqs = 1 << max(0, int(tokens / STEPS / seq_len).bit_length() - 1)
        seqs = min(max(seqs, _MIN_BATCH_SEQS), max_batch_tokens(model.parameters) // seq_len)
        per_rank = max(1, seqs // n)
        micro = max(1, min(per_rank, _MICRO_TOKENS[self.machine.device] // seq_len))
        batch_tokens = per_rank // micro * micro * n * seq_len
        total = max(batch_tokens, round(tokens / batch_tokens) * batch_tokens)
        return Training(
            model=model,
            seq_len=seq_len,
            micro_batch_size=micro,
            batch_tokens=batch_tokens,
            total_tokens=total,
            learning_rate=peak_learning_rate(model.parameters),
            precision="bf16" if self.machine.device == "cuda" else "fp32",
            epochs=0.0,
            tokens_per_s=None,
            why=(),
        )


def _within(fit: _Fit, size: float, corpus_tokens: int, measure: Measure) -> Training:
    """The size by the corpus if this machine trains it in DEFAULT_TIME_S, else the size by that time.

    A run so small that two cores train it in the time is not measured, nor one so large that it takes too long to try.
    """
    plan = fit.plan(size, TOKENS_PER_PARAMETER * size)
    bounded = _bounded(fit, plan, plan.total_tokens, corpus_tokens)
    if bounded.total_tokens * plan.model.train_flops_per_token(plan.seq_len) < SMALL_FLOPS:
        return bounded
    if size > 50 * MIN_PARAMETERS:
        return _for_time(fit, MIN_PARAMETERS, DEFAULT_TIME_S, corpus_tokens, measure)
    speed = measure(plan)
    if plan.total_tokens > speed * DEFAULT_TIME_S:
        return _for_time(fit, MIN_PARAMETERS, DEFAULT_TIME_S, corpus_tokens, measure, known=(plan, speed))
    return _bounded(fit, replace(plan, tokens_per_s=speed), plan.total_tokens, corpus_tokens)


def _for_time(
    fit: _Fit,
    floor: float,
    time_s: float,
    corpus_tokens: int,
    measure: Measure,
    *,
    known: tuple[Training, float] | None = None,
) -> Training:
    """The largest model that sees 20 tokens a parameter in the time, by the speed of two models.

    With little data, the model is at most as large as the corpus has tokens.
    """
    plan = fit.plan(floor, TOKENS_PER_PARAMETER * floor) if known is None else known[0]
    speed = measure(plan) if known is None else known[1]
    flops = speed * plan.model.train_flops_per_token(plan.seq_len)
    size = (flops * time_s / 6 / TOKENS_PER_PARAMETER) ** 0.5
    size = min(max(size, LEAST_PARAMETERS), max(floor, corpus_tokens))
    chosen = fit.plan(size, TOKENS_PER_PARAMETER * size)
    speed = speed if chosen.model == plan.model else measure(chosen)
    return _bounded(fit, replace(chosen, tokens_per_s=speed), speed * time_s, corpus_tokens)


def _bounded(fit: _Fit, plan: Training, tokens: float, corpus_tokens: int) -> Training:
    """The plan with this length, at most MAX_EPOCHS of the corpus."""
    most = MAX_EPOCHS * corpus_tokens
    why: tuple[str, ...] = ()
    if tokens > most:
        why = (
            f"{tokens:,.0f} tokens would read the text {tokens / corpus_tokens:,.0f} times. The run ends after "
            f"{MAX_EPOCHS} times; --tokens N sets another length",
        )
    return _finished(fit, plan, min(tokens, most), corpus_tokens, why)


def _finished(fit: _Fit, plan: Training, tokens: float, corpus_tokens: int, why: tuple[str, ...]) -> Training:
    """The plan's model over this many tokens of the corpus, with its epochs."""
    done = fit.batched(plan.model, plan.seq_len, tokens)
    epochs = done.total_tokens / max(1, corpus_tokens)
    if epochs > GOOD_EPOCHS:
        why = (*why, f"the text is read {epochs:.1f} times; after {GOOD_EPOCHS} times, new text would help more")
    return replace(done, epochs=epochs, tokens_per_s=plan.tokens_per_s, why=why)
