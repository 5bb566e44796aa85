"""How long a run trains and how often it looks: the [train] section of a recipe."""

from dataclasses import dataclass

from gpt.errors import ConfigError
from gpt.training.batch_ramp import BatchRamp


@dataclass(frozen=True)
class TrainConfig:
    """Spans are in tokens, since tokens are the clock. The run ends at the first of its three ends."""

    total_tokens: int
    z_loss: float = 0.0  # times log^2 Z of each token is added to what a step lowers (PaLM: 1e-4); 0: nothing
    stop_after_s: float | None = None  # seconds since this process began to train
    target_loss: float | None = None  # nats: every validation corpus at or below it
    evaluate_every_tokens: int | None = None
    validation_tokens: int = 1 << 20  # at most so many of each validation corpus, from its start
    sample_every_tokens: int | None = None
    sample_prompts: tuple[str, ...] = ("",)  # "" = from the start of a document
    sample_new_tokens: int = 64
    sample_temperature: float = 1.0
    few_shot_every_tokens: int | None = None
    few_shot_tasks: tuple[str, ...] = ("gpt3_two_digit_addition", "gpt3_cycle_letters_in_word")
    few_shot_examples: tuple[int, ...] = (0, 1, 5)  # before each question
    few_shot_limit: int = 100  # questions a task and number of examples
    few_shot_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for key in (
            "total_tokens",
            "evaluate_every_tokens",
            "validation_tokens",
            "sample_every_tokens",
            "sample_new_tokens",
            "few_shot_every_tokens",
            "few_shot_limit",
            "few_shot_batch_tokens",
        ):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"train.{key} = {value} must be at least 1")
        if not 0 <= self.z_loss <= 1:
            raise ConfigError(f"train.z_loss = {self.z_loss} must be from 0 to 1; PaLM's is 1e-4, 0 turns it off")
        if self.stop_after_s is not None and not 0 < self.stop_after_s < float("inf"):
            raise ConfigError(f"train.stop_after_s = {self.stop_after_s} must be a number of seconds above 0")
        if self.target_loss is not None:
            if not 0 < self.target_loss < float("inf"):
                raise ConfigError(f"train.target_loss = {self.target_loss} must be a number of nats above 0")
            if self.evaluate_every_tokens is None:
                raise ConfigError("train.target_loss needs train.evaluate_every_tokens: it is compared at evaluations")
        if not 0 <= self.sample_temperature < float("inf"):
            raise ConfigError(f"train.sample_temperature = {self.sample_temperature} must be 0 or a positive number")
        if self.sample_every_tokens is not None and not self.sample_prompts:
            raise ConfigError("train.sample_prompts is empty; give at least one, such as ''")
        if self.few_shot_every_tokens is not None and not self.few_shot_tasks:
            raise ConfigError("train.few_shot_tasks is empty; give at least one, such as 'gpt3_two_digit_addition'")
        if not self.few_shot_examples or min(self.few_shot_examples) < 0:
            raise ConfigError(
                f"train.few_shot_examples = {list(self.few_shot_examples)} must be numbers of examples, each 0 or more"
            )

    def steps(self, batch: BatchRamp) -> int:
        """Whole steps that reach total_tokens."""
        return batch.steps_to(self.total_tokens)
