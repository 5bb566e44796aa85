"""Score few-shot tasks during training, for RUN/few_shot.jsonl and the metrics. Does not change the weights."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import words_of_python
from gpt.evaluation.few_shot.scores import TaskScore, few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, OpenTasks, open_tasks
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.engine import Engine

# The errors of the tasks name options of `triaxial evaluate`. Rename them to the settings of a recipe.
_SETTINGS = {
    "--tasks": "train.few_shot_tasks",
    "--num-fewshot": "train.few_shot_examples",
    "--limit": "train.few_shot_limit",
}


@dataclass(frozen=True)
class FewShotProbe:
    """Few-shot tasks, equal on every rank and at every step: those of `triaxial evaluate` with its default seed."""

    tasks: OpenTasks
    tokenizer: Tokenizer
    n_ctx: int

    def run(self, engine: Engine, *, before_each: Callable[[], None]) -> list[TaskScore]:
        """Score the tasks. Every rank must call it; all get the scores. `before_each` is called after each batch."""
        with engine.as_model() as model:
            return few_shot_scores(
                model, self.tokenizer, self.tasks, n_ctx=self.n_ctx, progress=lambda finished, total: before_each()
            )


def make_few_shot_probe(config: TrainConfig, tokenizer: Tokenizer, *, n_ctx: int) -> FewShotProbe | None:
    """Return the probe of `few_shot_every_tokens`, or None if it is not set.

    ConfigError: `lm_eval` is missing, a task is unknown, its data is not on this machine, its answers do not fit the
    context, or it has too few examples.
    """
    if config.few_shot_every_tokens is None:
        return None
    options = FewShotOptions(
        tasks=config.few_shot_tasks,
        shots=tuple(dict.fromkeys(config.few_shot_examples)),
        limit=config.few_shot_limit,
        words=words_of_python(),
        batch_tokens=config.few_shot_batch_tokens,
    )
    try:
        tasks = open_tasks(options)
        tasks.check_answers(n_ctx=n_ctx)
        return FewShotProbe(tasks, tokenizer, n_ctx)
    except ConfigError as error:
        message = str(error)
        for option, setting in _SETTINGS.items():
            message = message.replace(option, setting)
        raise ConfigError(message) from error


def few_shot_values(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return the values to log: `few_shot/TASK/EXAMPLES`, and `/METRIC` if a task has several metrics."""
    metrics: dict[str, set[str]] = {}
    for score in scores:
        metrics.setdefault(score.task, set()).add(score.metric)
    return {
        f"few_shot/{score.task}/{score.shots}"
        + (f"/{score.metric}" if len(metrics[score.task]) > 1 else ""): score.value
        for score in scores
    }


def few_shot_records(scores: Sequence[TaskScore], *, step: int, tokens: int) -> list[dict[str, Any]]:
    """Return the lines of few_shot.jsonl."""
    return [{"step": step, "tokens_seen": tokens, **asdict(score)} for score in scores]
