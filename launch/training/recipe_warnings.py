"""Settings of a recipe that are valid, but probably not meant."""

from gpt.telemetry.event_log import EventKind
from launch.config.run_config import RunConfig

PADDED_ROWS = 128  # vocabularies are often rounded up to a multiple of this for speed
EARLY = 0.8  # GPT-3's decay ends at 0.87 of its tokens


def recipe_warnings(config: RunConfig, *, tokenizer_vocab_size: int) -> list[tuple[EventKind, str]]:
    """Return an event for each setting that is probably a mistake; none for most recipes."""
    found, vocab_size = list[str](), config.model.vocab_size
    if vocab_size - tokenizer_vocab_size >= PADDED_ROWS:
        found.append(
            f"model.vocab_size = {vocab_size:,}: the tokenizer has {tokenizer_vocab_size:,} tokens, and the other rows "
            f"learn nothing but to be unlikely. Use model.vocab_size = {tokenizer_vocab_size}"
        )
    decay, total = config.schedule.decay_tokens, config.train.total_tokens
    if decay is not None and decay < EARLY * total:
        found.append(
            f"schedule.decay_tokens = {decay:,}: the learning rate is at its lowest for the last "
            f"{1 - decay / total:.0%} of train.total_tokens = {total:,}. Use schedule.decay_tokens = {total}"
        )
    if config.schedule.warmup_tokens >= total:
        found.append(
            f"schedule.warmup_tokens = {config.schedule.warmup_tokens:,}: the run ends before the learning rate is at "
            f"its peak, with train.total_tokens = {total:,}. Use less, such as schedule.warmup_tokens = {total // 100}"
        )
    return [("warning", line) for line in found]
