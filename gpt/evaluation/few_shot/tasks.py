"""Open few-shot tasks: read and check all options and data before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt.errors import ConfigError, did_you_mean, import_extra
from gpt.evaluation.few_shot.answer_settings import MAX_ANSWER_TOKENS, read_settings
from gpt.evaluation.few_shot.clean_subset import Overlap, read_overlap
from gpt.evaluation.few_shot.gpt3_problems import TaskRule, WordList, make_problems, task_rules
from gpt.evaluation.few_shot.published_problems import published_problems
from gpt.tokenizer.tokenizers import Tokenizer

if TYPE_CHECKING:
    from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask

_MAX_CHECKED = 100  # number of questions per task for which the context length is checked


@dataclass(frozen=True)
class FewShotOptions:
    """The tasks and options of an evaluation.

    `tasks`: names of our tasks, of groups of them (`gpt3`, `gpt3_arithmetic`, `gpt3_words`), or of the harness's tasks.
    `shots`: numbers of examples. `paper_shots`: also 0, 1 and the paper's number, if that many fit.
    `limit`: items per task, None for all. `gpt3_data`: the folder of openai/gpt-3's files.
    `clean_subset`: the examples.jsonl of an overlap analysis. `include_path`: a folder with the user's own YAML tasks
    for the harness, whose `!function` entries run as code. `own`: folders that we wrote for it, with the names of their
    tasks, which show no further examples.
    """

    tasks: tuple[str, ...]
    shots: tuple[int, ...]
    limit: int | None
    words: WordList
    seed: int = 0
    batch_tokens: int = 8192
    paper_shots: bool = False
    same_examples: bool = False
    answers: Literal["written", "likelihood"] = "written"
    gpt3_data: Path | None = None
    normalise: tuple[str, ...] = ()
    clean_subset: Path | None = None
    include_path: Path | None = None
    own: tuple[tuple[Path, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        if any(shots < 0 for shots in self.shots) or not (self.shots or self.paper_shots):
            raise ConfigError(
                f"--num-fewshot {' '.join(map(str, self.shots))} is invalid: each number of examples must be 0 or more."
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit} is invalid: it must be at least 1. Leave it out for all items.")


@dataclass(frozen=True)
class OpenTasks:
    """Tasks that are ready to run: ours by key; the harness's as it loads them, one entry per number of examples."""

    options: FewShotOptions
    generated: "dict[str, GeneratedTask]"
    loaded: list[dict[str, Any]]
    overlap: Overlap | None = None

    def sources(self) -> dict[str, Any]:
        """Return the source of our problems, for reports: scores on different problems are not comparable."""
        options = self.options
        words = options.words
        found: dict[str, Any] = {"same_examples": options.same_examples}
        if options.gpt3_data is not None:
            return found | {"gpt3_data": str(options.gpt3_data)}
        return found | {"words": {"source": words.source, "count": len(words.words), "sha256": words.sha256}}

    def items_in_file(self, name: str, task: Any) -> int:
        """Return the number of items in a task's file, including those that are not asked."""
        if name in self.generated:
            return len(task.problems.scored) + len(task.problems.examples)
        return len(task.eval_docs)

    def check_answers(self, *, n_ctx: int) -> None:
        """Raise ConfigError if the answers of a task leave no room for a question, or need sampling that we lack."""
        for loaded in [{"tasks": self.generated}, *self.loaded]:
            for name, task in loaded["tasks"].items():
                if task.OUTPUT_TYPE == "generate_until":
                    try:
                        settings = read_settings(task.config.generation_kwargs or {}, default_tokens=MAX_ANSWER_TOKENS)
                        settings.max_question_tokens(n_ctx=n_ctx)
                    except ConfigError as error:
                        raise ConfigError(f"--tasks {name}: {error}") from None

    def that_fit(self, tokenizer: Tokenizer, *, n_ctx: int) -> "tuple[OpenTasks, list[str]]":
        """Drop tasks with the paper's number of examples where the context is too short. Returns also a line that names
        them. Numbers of examples that the user gave stay."""
        kept, left_out = {}, []
        for key, task in self.generated.items():
            if task.shots not in self.options.shots and task.longest_context(tokenizer, _MAX_CHECKED) > n_ctx:
                left_out.append(f"{task.rule.label} with {task.shots}")
            else:
                kept[key] = task
        notes = [f"left out, since their examples do not fit into {n_ctx:,} tokens: {', '.join(left_out)}"]
        return replace(self, generated=kept), notes if left_out else []


def open_tasks(options: FewShotOptions) -> OpenTasks:
    """Make our tasks and load the harness's. Needs no model.

    ConfigError: `lm_eval` is missing, a task is unknown or its data is not on this machine, or it has too few examples.
    """
    import_extra("lm_eval", extra="eval")
    from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask
    from gpt.evaluation.few_shot.normalised import check_rules

    check_rules(options.normalise)
    rules, others = choose_tasks(options.tasks)
    if options.paper_shots and others:
        raise ConfigError(f"--num-fewshot paper is only valid for the gpt3 tasks. Give {others[0]} a number.")
    generated = {}
    for rule in rules:
        if options.gpt3_data is None:
            problems = make_problems(rule, seed=options.seed, words=options.words)
        else:
            problems = published_problems(rule, options.gpt3_data)
        papers = (0, 1, rule.paper_shots) if options.paper_shots else ()
        for shots in dict.fromkeys((*options.shots, *papers)):
            task = GeneratedTask(
                rule,
                problems,
                shots=shots,
                seed=options.seed,
                answers=options.answers,
                same_examples=options.same_examples,
            )
            generated[task.key] = task
    if options.gpt3_data is not None and not rules:
        raise ConfigError("--gpt3-data is only valid for the gpt3 tasks, and --tasks names none of them.")
    loaded = [
        load_harness_tasks(others, shots, same_examples=options.same_examples, include_path=options.include_path)
        for shots in options.shots
        if others
    ]
    loaded += [load_harness_tasks(names, 0, include_path=folder) for folder, names in options.own]
    return OpenTasks(options, generated, loaded, _overlap(options, rules, loaded))


def choose_tasks(names: Sequence[str]) -> tuple[list[TaskRule], list[str]]:
    """Return our tasks, with groups expanded, and the names that are not ours."""
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


def load_harness_tasks(
    names: Sequence[str], shots: int, *, same_examples: bool = False, include_path: Path | None = None
) -> dict[str, Any]:
    """Load tasks of the harness by its TaskManager, with `shots` examples unless a task fixes its number at 0.

    `include_path`: a folder with further tasks, which go before the harness's of the same name.
    """
    import_extra("lm_eval", extra="eval")
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include-path {include_path} is no folder. Give a folder with YAML tasks.")
    try:
        manager = TaskManager() if include_path is None else TaskManager(include_path=str(include_path))
    except Exception as error:  # a YAML file can be wrong in any way
        raise ConfigError(f"--include-path {include_path} cannot be read: {error}") from None
    ours = ["gpt3", "gpt3_arithmetic", "gpt3_words", *(rule.name for rule in task_rules())]
    for name in names:
        if name not in manager.all_tasks:
            hint = did_you_mean(name, [*ours, *manager.all_tasks]) or f"ours: {', '.join(ours)}."
            raise ConfigError(f"--tasks: unknown task '{name}'; {hint} `lm_eval ls tasks` lists those of the harness.")
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # a data set can raise anything if it is missing
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--tasks {' '.join(names)} could not be loaded: {reason}. If the data is not on this machine, "
            "HF_HUB_OFFLINE=0 allows the download."
        ) from error
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") != 0:  # a task sets 0 if it must not show examples
            task.set_config(key="num_fewshot", value=shots)
            _choose_examples(name, task, shots, same=same_examples)
    return loaded


def _choose_examples(name: str, task: Any, shots: int, *, same: bool) -> None:
    """Check that a task has `shots` examples. `same`: show the first ones for every question, as the harness's
    `sampler: first_n`. ConfigError: too few examples."""
    from lm_eval.api.samplers import FirstNSampler

    sampler = getattr(task, "sampler", None)
    if sampler is None or not shots:
        return
    examples = list(sampler.df)
    own = task.config.fewshot_split in (task.config.test_split, task.config.validation_split)
    available = len(examples) - own  # a question cannot be its own example
    if shots > available:
        raise ConfigError(
            f"--num-fewshot {shots} is invalid: {name} has {available:,} examples. Use at most {available}."
        )
    if same and not isinstance(sampler, FirstNSampler):
        task.sampler = FirstNSampler(examples)


def _overlap(options: FewShotOptions, rules: list[TaskRule], loaded: list[dict[str, Any]]) -> Overlap | None:
    if options.clean_subset is None:
        return None
    if rules and options.gpt3_data is None:
        raise ConfigError(
            "--clean-subset is invalid for generated problems: they are in no file that could overlap. Add --gpt3-data "
            "DIR, or leave the gpt3 tasks out."
        )
    names = [rule.name for rule in rules] + [name for tasks in loaded for name in tasks["tasks"]]
    return read_overlap(options.clean_subset, list(dict.fromkeys(names)))
