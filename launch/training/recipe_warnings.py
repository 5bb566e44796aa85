"""Settings of a recipe that are valid, but probably not meant."""

from gpt.telemetry.event_log import EventKind
from gpt.telemetry.screen import counted
from launch.config.run_config import RunConfig
from parallel.engines.capabilities import unused_settings

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
    decay, warmup, total = config.schedule.decay_tokens, config.schedule.warmup_tokens, config.train.total_tokens
    steps = config.batch.ramp.steps_to  # a recipe may say these lengths in steps
    if decay is not None and decay < EARLY * total:
        found.append(
            f"the learning rate's decay ends at {decay:,} tokens (step {steps(decay):,}): it is at its lowest for the "
            f"last {1 - decay / total:.0%} of the run's {total:,} tokens ({counted(steps(total), 'step')}). Leave out "
            f"schedule.decay_tokens and schedule.decay_steps: the decay then ends with the run"
        )
    if warmup >= total:
        found.append(
            f"the learning rate's warm-up of {warmup:,} tokens ({counted(steps(warmup), 'step')}) is not shorter "
            f"than the run of {total:,} tokens ({counted(steps(total), 'step')}), which never reaches its peak. Leave "
            f"out schedule.warmup_tokens and schedule.warmup_steps, or use less, such as "
            f"schedule.warmup_steps = {steps(total) // 100}"
        )
    found += unused_settings(config.parallel)
    return [("warning", line) for line in found]
