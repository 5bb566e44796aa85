"""Few-shot scores through lm-evaluation-harness: chooses tasks and runs its evaluator; never answers by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt.errors import ConfigError, import_extra
from gpt.evaluation.gpt3_problems import TaskRule, WordList, make_problems, task_rules
from gpt.generation import Model
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt.evaluation.gpt3_tasks import GeneratedTask
    from gpt.evaluation.harness import Progress, TriaxialLM

_BOOTSTRAP_DRAWS = 1000  # for the few metrics whose standard error has no formula


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task at one number of examples."""

    task: str
    label: str
    shots: int
    metric: str
    value: float
    standard_error: float | None
    items: int
    truncated: int  # items whose context did not fit and lost its beginning


@dataclass(frozen=True)
class FewShotOptions:
    """What to evaluate. `tasks`: names of our tasks, of groups of them (`gpt3`, `gpt3_arithmetic`, `gpt3_words`), or of
    the harness's own. `limit`: items per task, None for all."""

    tasks: tuple[str, ...]
    shots: tuple[int, ...]
    limit: int | None
    words: WordList
    seed: int = 0
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if any(shots < 0 for shots in self.shots) or not self.shots:
            raise ConfigError(
                f"--num-fewshot {' '.join(map(str, self.shots))}: give numbers of examples, each 0 or more"
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit} must be at least 1; leave it out for all items")


@dataclass(frozen=True)
class OpenTasks:
    """Tasks ready to be asked: ours by key, and the harness's own as it loads them, once a number of examples."""

    options: FewShotOptions
    generated: "dict[str, GeneratedTask]"
    loaded: list[dict[str, Any]]


def open_tasks(options: FewShotOptions) -> OpenTasks:
    """Make and load the tasks, before any model is.

    ConfigError: `lm_eval` missing, an unknown task, one whose data is not on this machine, or too many examples.
    """
    import_extra("lm_eval", extra="eval")
    from gpt.evaluation.gpt3_tasks import GeneratedTask

    rules, others = choose_tasks(options.tasks)
    generated = {}
    for rule in rules:
        problems = make_problems(rule, seed=options.seed, words=options.words)
        for shots in options.shots:
            task = GeneratedTask(rule, problems, shots=shots, seed=options.seed)
            generated[task.key] = task
    loaded = [load_harness_tasks(others, shots) for shots in options.shots] if others else []
    return OpenTasks(options, generated, loaded)


def few_shot_scores(
    model: GPT | Model, tokenizer: Tokenizer, tasks: OpenTasks, *, n_ctx: int, progress: "Progress | None" = None
) -> list[TaskScore]:
    """Scores of every task at every number of examples; all of ours in one pass, so that they share batches."""
    from gpt.evaluation.harness import TriaxialLM

    options = tasks.options
    lm = TriaxialLM(
        model, tokenizer, n_ctx=n_ctx, batch_tokens=options.batch_tokens, seed=options.seed, progress=progress
    )
    scores = _generated_scores(lm, tasks.generated, options) if tasks.generated else []
    for loaded in tasks.loaded:
        scores += _harness_scores(lm, loaded, options)
    return scores


def choose_tasks(names: Sequence[str]) -> tuple[list[TaskRule], list[str]]:
    """Our tasks, groups spelt out, and the names that must be the harness's own."""
    rules = task_rules()
    groups = {
        "gpt3": rules,
        "gpt3_arithmetic": [rule for rule in rules if not rule.about_words],
        "gpt3_words": [rule for rule in rules if rule.about_words],
    }
    known = groups | {rule.name: [rule] for rule in rules}
    chosen: dict[str, TaskRule] = {}
    others = []
    for name in names:
        if name not in known:
            others.append(name)
        for rule in known.get(name, []):
            chosen[rule.name] = rule
    return list(chosen.values()), others


def load_harness_tasks(names: Sequence[str], shots: int) -> dict[str, Any]:
    """The harness's own tasks, as its TaskManager loads them, with `shots` examples where a task lets one choose."""
    import_extra("lm_eval", extra="eval")
    from difflib import get_close_matches

    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    ours = ["gpt3", "gpt3_arithmetic", "gpt3_words", *(rule.name for rule in task_rules())]
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, [*ours, *manager.all_tasks], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"ours: {', '.join(ours)}"
            raise ConfigError(f"--tasks: unknown task '{name}'; {hint} (lm_eval lists its own with `lm_eval ls tasks`)")
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # whatever a task's data set raises when it is not there
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--tasks {' '.join(names)} could not be loaded, probably because the data is not on this machine: {reason}"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") != 0:  # 0 is a task's own wish for none
            task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=0)
    return loaded


def _generated_scores(lm: "TriaxialLM", tasks: "dict[str, GeneratedTask]", options: FewShotOptions) -> list[TaskScore]:
    results = _evaluate(lm, {"tasks": tasks, "groups": {}}, options)
    return [
        TaskScore(
            task=task.rule.name,
            label=task.rule.label,
            shots=task.shots,
            metric="exact_match",
            value=results[key]["exact_match,none"],
            standard_error=_number(results[key].get("exact_match_stderr,none")),
            items=len(task.instances),
            truncated=_truncated(lm, task),
        )
        for key, task in tasks.items()
    ]


def _harness_scores(lm: "TriaxialLM", loaded: dict[str, Any], options: FewShotOptions) -> list[TaskScore]:
    results = _evaluate(lm, loaded, options)
    scores = []
    for name, task in loaded["tasks"].items():
        for key, value in results[name].items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            scores.append(
                TaskScore(
                    task=name,
                    label=name,
                    shots=int(task.get_config("num_fewshot") or 0),
                    metric=metric if filtered == "none" else f"{metric} ({filtered})",
                    value=value,
                    standard_error=_number(results[name].get(f"{metric}_stderr,{filtered}")),
                    items=int(results[name]["sample_len"]),
                    truncated=_truncated(lm, task),
                )
            )
    return scores


def _evaluate(lm: "TriaxialLM", tasks: dict[str, Any], options: FewShotOptions) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    found = evaluate(lm, tasks, limit=options.limit, bootstrap_iters=_BOOTSTRAP_DRAWS, log_samples=False)
    results: dict[str, Any] = found["results"]
    return results


def _truncated(lm: "TriaxialLM", task: Any) -> int:
    return len({instance.doc_id for instance in task.instances if instance.args[0] in lm.truncated})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
