"""The sections [train], [checkpoint], [faults] and [objective] of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from gpt.errors import ConfigError
from gpt.health.spikes import SpikeConfig
from gpt.training.schedule import BatchRamp

if TYPE_CHECKING:
    from gpt.training.objective import Objective


@dataclass(frozen=True)
class TrainConfig:
    """The [train] section of a recipe. Intervals are in tokens, since tokens are the clock.

    The run ends at `total_tokens`, `stop_after_s` or `target_loss`, whichever comes first.
    """

    total_tokens: int
    """Tokens after which the run ends. `total_steps` and `epochs` are other ways to say it."""
    z_loss: float = 0.0
    """Factor of log^2 Z of each token in the training loss (PaLM: 1e-4)."""
    residual_dropout: float = 0.0
    """Share of the elements that each attention and MLP adds to the residual stream which training sets to 0. Its masks
    are the same on every layout. InstructGPT's SFT: 0.2."""
    stop_after_s: float | None = None
    """Seconds since this process began to train, after which it saves and ends."""
    target_loss: float | None = None
    """Nats. The run ends when every validation corpus is at or below it."""
    evaluate_every_tokens: int | None = None
    """Tokens between two evaluations. None by default."""
    validation_tokens: int = 1 << 20
    """Tokens of each validation corpus, from its start."""
    sample_every_tokens: int | None = None
    """Tokens between two sets of sampled texts. None by default."""
    sample_prompts: tuple[str, ...] = ("",)
    """Beginnings of the sampled texts. "" is the start of a document."""
    sample_new_tokens: int = 64
    """Tokens of a sampled text."""
    sample_temperature: float = 1.0
    """Temperature of sampled texts. 0 takes the most likely token."""
    few_shot_every_tokens: int | None = None
    """Tokens between two few-shot evaluations. None by default."""
    few_shot_tasks: tuple[str, ...] = ("gpt3_two_digit_addition", "gpt3_cycle_letters_in_word")
    """Names of the few-shot tasks."""
    few_shot_examples: tuple[int, ...] = (0, 1, 5)
    """Numbers of examples before each question."""
    few_shot_limit: int = 100
    """Questions of a task and number of examples."""
    few_shot_batch_tokens: int = 8192
    """Tokens of a forward pass of few-shot evaluation."""

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
                raise ConfigError(f"train.{key} = {value} is invalid: must be at least 1")
        _check_regularisation(self)
        if self.stop_after_s is not None and not 0 < self.stop_after_s < float("inf"):
            raise ConfigError(
                f"train.stop_after_s = {self.stop_after_s} is invalid: must be a number of seconds above 0"
            )
        if self.target_loss is not None:
            if not 0 < self.target_loss < float("inf"):
                raise ConfigError(
                    f"train.target_loss = {self.target_loss} is invalid: must be a number of nats above 0"
                )
            if self.evaluate_every_tokens is None:
                raise ConfigError("train.target_loss needs train.evaluate_every_tokens: it is compared at evaluations")
        if not 0 <= self.sample_temperature < float("inf"):
            raise ConfigError(
                f"train.sample_temperature = {self.sample_temperature} is invalid: must be 0 or a positive number"
            )
        if self.sample_every_tokens is not None and not self.sample_prompts:
            raise ConfigError("train.sample_prompts is empty; give at least one, such as ''")
        if self.few_shot_every_tokens is not None and not self.few_shot_tasks:
            raise ConfigError("train.few_shot_tasks is empty; give at least one, such as 'gpt3_two_digit_addition'")
        if not self.few_shot_examples or min(self.few_shot_examples) < 0:
            raise ConfigError(
                f"train.few_shot_examples = {list(self.few_shot_examples)} is invalid: must be numbers of examples, "
                "each 0 or more"
            )

    def steps(self, batch: BatchRamp) -> int:
        """Whole steps that reach total_tokens."""
        return batch.steps_to(self.total_tokens)


def _check_regularisation(config: TrainConfig) -> None:
    if not 0 <= config.z_loss <= 1:
        raise ConfigError(
            f"train.z_loss = {config.z_loss} is invalid: must be from 0 to 1; PaLM's is 1e-4, 0 turns it off"
        )
    if not 0 <= config.residual_dropout < 1:
        raise ConfigError(
            f"train.residual_dropout = {config.residual_dropout} is invalid: must be at least 0 and below 1. Use 0 "
            f"for none, or 0.2 as InstructGPT"
        )


@dataclass(frozen=True)
class FaultConfig:
    """The [faults] section of a recipe: faults that a run may leave behind."""

    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient may be infinite or NaN. Such a step updates nothing."""
    on_damaged_data: Literal["stop", "skip"] = "stop"
    """What to do where token files differ from their checksums: end the run, or leave out the samples there."""
    max_damaged_samples: int = 1000
    """Damaged samples that a run may leave out."""

    def __post_init__(self) -> None:
        if self.max_skipped_steps < 0:
            raise ConfigError(f"faults.max_skipped_steps = {self.max_skipped_steps} is invalid: must not be negative")
        if self.max_damaged_samples < 1:
            raise ConfigError(
                f"faults.max_damaged_samples = {self.max_damaged_samples} is invalid: must be at least 1. "
                "To allow none, set faults.on_damaged_data = 'stop'"
            )


class ReplicaMismatch(ConfigError):
    """Ranks hold different copies of one weight or moment. No setting is wrong, and a restart may help."""

    exit_status = 1


@dataclass(frozen=True)
class Retention:
    """The checkpoints that a save keeps: the newest `last`, and every one for whose step `permanent` returns True."""

    last: int
    permanent: Callable[[int], bool] = lambda step: False


@dataclass(frozen=True)
class CheckpointConfig:
    """The [checkpoint] section of a recipe."""

    every_tokens: int | None = None
    """Tokens between two saves. Every `every_s` seconds by default."""
    every_s: float = 1800.0
    """Seconds between two saves if there is no `every_tokens`. 0: at the end only."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every_tokens: int | None = None
    """A multiple of `every_tokens`. Checkpoints at multiples of it are never deleted."""
    keep_best: str | None = None
    """Name of a value of evaluations, such as `validation/held/loss`. The checkpoint that is best by it is not deleted,
    and `--step best` finds it."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of `keep_best` is the best."""
    in_background: bool = True
    """Save in the background. Training waits only for the copy to host memory."""
    max_failures: int = 3
    """Saves in a row that may fail before the run ends."""
    fast_directory: str = ""
    """The local tier: a folder on a fast disk of each node, for frequent saves that serve restarts on the same layout.
    """
    fast_every_tokens: int | None = None
    """Tokens between two saves to the local tier."""

    def __post_init__(self) -> None:
        for key in ("every_tokens", "keep_last", "keep_every_tokens", "max_failures", "fast_every_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{key} = {value} is invalid: must be at least 1")
        if not 0 <= self.every_s < float("inf"):
            raise ConfigError(
                f"checkpoint.every_s = {self.every_s:g} is invalid: must be seconds, or 0 for no such saves"
            )
        if self.keep_every_tokens is not None:
            if self.every_tokens is None:
                raise ConfigError(
                    "checkpoint.keep_every_tokens needs checkpoint.every_tokens, of which it is a multiple"
                )
            if self.keep_every_tokens % self.every_tokens:
                below = self.keep_every_tokens // self.every_tokens * self.every_tokens
                raise ConfigError(
                    f"checkpoint.keep_every_tokens = {self.keep_every_tokens} is invalid: must be a multiple of "
                    f"checkpoint.every_tokens = {self.every_tokens}; the nearest are {below} and "
                    f"{below + self.every_tokens}"
                )
        if bool(self.fast_directory) != (self.fast_every_tokens is not None):
            raise ConfigError(
                "checkpoint.fast_directory and checkpoint.fast_every_tokens belong together: give both, or neither"
            )


def check_can_rewind(spike: SpikeConfig, checkpoint: CheckpointConfig, *, step_tokens: int) -> None:
    """ConfigError if the run may rewind, but the checkpoints that it keeps do not go back far enough."""
    if spike.action != "rewind" or checkpoint.keep_every_tokens is not None:
        return
    if checkpoint.every_tokens is None:
        raise ConfigError(
            "spike.action = 'rewind' needs checkpoints to go back to: set checkpoint.every_tokens, or spike.action = "
            "'report'"
        )
    needed = spike.rewind_steps + spike.patience_steps
    reach = (checkpoint.keep_last - 1) * checkpoint.every_tokens // step_tokens
    if reach < needed:
        enough = -(-needed * step_tokens // checkpoint.every_tokens) + 1
        raise ConfigError(
            f"spike.action = 'rewind' goes back spike.rewind_steps + spike.patience_steps = {needed} steps, but "
            f"checkpoint.keep_last = {checkpoint.keep_last} checkpoints every {checkpoint.every_tokens:,} tokens reach "
            f"back {reach} steps of {step_tokens:,}; use checkpoint.keep_last = {enough}, or a smaller "
            f"spike.rewind_steps"
        )


def check_keep_best(checkpoint: CheckpointConfig, train: TrainConfig) -> None:
    """ConfigError unless a checkpoint is saved at each evaluation, so that the best evaluation has one."""
    if checkpoint.keep_best is None:
        return
    evaluated, saved = train.evaluate_every_tokens, checkpoint.every_tokens
    if evaluated is None or saved is None or evaluated % saved:
        raise ConfigError(
            f"checkpoint.keep_best = '{checkpoint.keep_best}' is invalid with train.evaluate_every_tokens = "
            f"{evaluated} and checkpoint.every_tokens = {saved}: a checkpoint must be saved at each evaluation. Use "
            f"the same number for both"
        )


class ObjectiveConfig(Protocol):
    """An [objective] section of any kind: a frozen dataclass in a module that does not import torch.

    It may have class variables. `restarts_positions`: a row holds several sequences, each with positions from 0, and
    `Objective.check_corpus` checks their lengths, so that data.seq_len may exceed model.n_ctx. `predicts_tokens`: a
    step is one forward and backward of the whole model with a vocabulary head, so that the planner knows its time.
    """

    @property
    def kind(self) -> str:
        """The name of the kind, by which launch/config/objectives.py finds the section and its program."""
        ...

    def build(self, *, z_loss: float) -> "Objective":
        """The objective. `z_loss`: `train.z_loss` of the recipe, for losses over a vocabulary."""
        ...


@dataclass(frozen=True)
class NextTokenConfig:
    """The [objective] section for next-token prediction, the default."""

    kind: Literal["next_token"] = "next_token"
    """Predict the next token."""
    predicts_tokens: ClassVar[bool] = True

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.training.objective import NextToken

        return NextToken(z_loss)
