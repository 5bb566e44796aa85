"""Run the evaluator of lm-evaluation-harness on few-shot tasks and collect the scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt.evaluation.few_shot.tasks import OpenTasks
from gpt.inference.model import InferenceModel
from gpt.model.gpt import GPT
from gpt.tokenizer.special_tokens import SpecialTokens
from gpt.tokenizer.tokenizers import Tokenizer

if TYPE_CHECKING:
    from gpt.evaluation.few_shot.harness import Progress, TriaxialLM

KeepSamples = Callable[[str, int, list[dict[str, Any]]], None]
_HARNESS_SEED = 1234  # for the examples of the harness's tasks: its own default, so that scores are comparable
_BOOTSTRAP_DRAWS = 1000  # for the few metrics without a formula for the standard error


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task with one number of examples.

    With an overlap analysis, also over the clean items, which do not occur in the training text, and the dirty ones,
    which do (None if there are none).
    """

    task: str
    label: str
    shots: int
    metric: str
    value: float
    standard_error: float | None
    items: int
    truncated: int  # items whose context was too long and lost its beginning
    clean_value: float | None = None
    clean_standard_error: float | None = None
    clean_items: int | None = None
    dirty_value: float | None = None
    dirty_standard_error: float | None = None
    dirty_items: int | None = None


def few_shot_scores(
    model: GPT | InferenceModel,
    tokenizer: Tokenizer,
    tasks: OpenTasks,
    *,
    n_ctx: int,
    progress: "Progress | None" = None,
    special: SpecialTokens | None = None,
    keep_samples: KeepSamples | None = None,
) -> list[TaskScore]:
    """Score every task with every number of examples. Our tasks run in one pass, so that they share batches.

    Every rank of a layout must call it; all get all scores. `special`: the tokens around a text of an imported model.
    `keep_samples` is called with each task's name, number of examples and items: question, answers, metrics.
    """
    from gpt.evaluation.few_shot.harness import TriaxialLM

    options = tasks.options
    lm = TriaxialLM(
        model,
        tokenizer,
        n_ctx=n_ctx,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
        progress=progress,
        special=special,
    )
    everything = [{"tasks": tasks.generated, "groups": {}}] if tasks.generated else []
    return [score for loaded in (*everything, *tasks.loaded) for score in _scores(lm, loaded, tasks, keep_samples)]


def _scores(
    lm: "TriaxialLM", loaded: dict[str, Any], tasks: OpenTasks, keep_samples: KeepSamples | None
) -> list[TaskScore]:
    """Return the scores of the harness's metrics and the normalised ones, task by task."""
    from lm_eval.evaluator import evaluate

    options = tasks.options
    by_item = options.clean_subset is not None or keep_samples is not None
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=_HARNESS_SEED)  # a repeated evaluation draws the same examples
    found = evaluate(lm, loaded, limit=options.limit, bootstrap_iters=_BOOTSTRAP_DRAWS, log_samples=by_item)
    scores = []
    for name, task in loaded["tasks"].items():
        samples = found["samples"][name] if by_item else []
        info = _TaskInfo.of(name, task, lm)
        if keep_samples is not None:
            keep_samples(info.task, info.shots, samples)
        dirty = None
        if tasks.overlap is not None:
            dirty = tasks.overlap.of(info.task, items=tasks.items_in_file(name, task))
        results = found["results"][name]
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            values = {s["doc_id"]: s[metric] for s in samples if s["filter"] == filtered and metric in s}
            scores.append(
                info.score(
                    metric if filtered == "none" else f"{metric} ({filtered})",
                    value,
                    _number(results.get(f"{metric}_stderr,{filtered}")),
                    items=int(results["sample_len"]),
                    parts=_parts(values, dirty, task.aggregation()[metric]),
                )
            )
        scores += _normalised(lm, task, info, options.normalise, dirty)
    return scores


@dataclass(frozen=True)
class _TaskInfo:
    """The fields that all scores of one task share."""

    task: str
    label: str
    shots: int
    truncated: int

    @classmethod
    def of(cls, name: str, task: Any, lm: "TriaxialLM") -> "_TaskInfo":
        from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask

        truncated = len({instance.doc_id for instance in task.instances if instance.args[0] in lm.truncated})
        if isinstance(task, GeneratedTask):
            return cls(task.rule.name, task.rule.label, task.shots, truncated)
        return cls(name, name, int(task.get_config("num_fewshot") or 0), truncated)

    def score(
        self, metric: str, value: float, standard_error: float | None, *, items: int, parts: dict[str, Any]
    ) -> TaskScore:
        return TaskScore(
            self.task, self.label, self.shots, metric, value, standard_error, items, self.truncated, **parts
        )


def _normalised(
    lm: "TriaxialLM", task: Any, info: _TaskInfo, rules: tuple[str, ...], dirty: tuple[bool, ...] | None
) -> list[TaskScore]:
    if not rules:
        return []
    from lm_eval.api.metrics import mean

    from gpt.evaluation.few_shot.normalised import normalised_items

    scores = []
    for metric, values in normalised_items(lm, task, rules).items():
        value, error = _mean_and_error([*values.values()])
        scores.append(info.score(metric, value, error, items=len(values), parts=_parts(values, dirty, mean)))
    return scores


def _parts(
    values: dict[int, Any], dirty: tuple[bool, ...] | None, aggregate: Callable[[list[Any]], float]
) -> dict[str, Any]:
    """Return the score over the clean and over the dirty items. Only means get a standard error, as in the harness."""
    if dirty is None:
        return {}
    from lm_eval.api.metrics import mean

    parts: dict[str, Any] = {}
    for name, is_dirty in (("clean", False), ("dirty", True)):
        chosen = [value for item, value in values.items() if dirty[item] == is_dirty]
        parts[f"{name}_items"] = len(chosen)
        if chosen and aggregate is mean:
            parts[f"{name}_value"], parts[f"{name}_standard_error"] = _mean_and_error(chosen)
        elif chosen:
            parts[f"{name}_value"] = float(aggregate(chosen))
    return parts


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error from the sample variance; None as the error of a single value."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
