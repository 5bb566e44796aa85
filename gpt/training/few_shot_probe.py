"""Few-shot questions to a model while it trains, in RUN/few_shot.jsonl and the metrics; changes no weight."""

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

# What the tasks' own errors call the settings, and what a recipe calls them.
_SETTINGS = {
    "--tasks": "train.few_shot_tasks",
    "--num-fewshot": "train.few_shot_examples",
    "--limit": "train.few_shot_limit",
}


@dataclass(frozen=True)
class FewShotProbe:
    """Questions, equal on every rank and at every step: those that `triaxial evaluate` asks with its default seed."""

    tasks: OpenTasks
    tokenizer: Tokenizer
    n_ctx: int

    def run(self, engine: Engine, *, before_each: Callable[[], None]) -> list[TaskScore]:
        """Every rank calls it and has the result. `before_each` is called between batches."""
        with engine.as_model() as model:
            return few_shot_scores(
                model, self.tokenizer, self.tasks, n_ctx=self.n_ctx, progress=lambda finished, total: before_each()
            )


def make_few_shot_probe(config: TrainConfig, tokenizer: Tokenizer, *, n_ctx: int) -> FewShotProbe | None:
    """What `few_shot_every_tokens` asks for, None without it. ConfigError: `lm_eval` is missing, an unknown task, one
    whose data is not on this machine or whose answers do not fit, or more examples than there are."""
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
    """What is logged: `few_shot/TASK/EXAMPLES`, followed by the metric where a task has several."""
    metrics: dict[str, set[str]] = {}
    for score in scores:
        metrics.setdefault(score.task, set()).add(score.metric)
    return {
        f"few_shot/{score.task}/{score.shots}"
        + (f"/{score.metric}" if len(metrics[score.task]) > 1 else ""): score.value
        for score in scores
    }


def few_shot_records(scores: Sequence[TaskScore], *, step: int, tokens: int) -> list[dict[str, Any]]:
    """What few_shot.jsonl has of each score."""
    return [{"step": step, "tokens_seen": tokens, **asdict(score)} for score in scores]
