"""Which few-shot tasks are asked, and how: reads and checks everything before a model is loaded; asks nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt.errors import ConfigError, import_extra
from gpt.evaluation.few_shot.answer_settings import MAX_ANSWER_TOKENS, read_settings
from gpt.evaluation.few_shot.clean_subset import Overlap, read_overlap
from gpt.evaluation.few_shot.gpt3_problems import TaskRule, WordList, make_problems, task_rules
from gpt.evaluation.few_shot.published_problems import published_problems
from gpt.tokenizer.tokenizers import Tokenizer

if TYPE_CHECKING:
    from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask

_LOOKED_AT = 100  # questions of a task, to see whether its contexts fit


@dataclass(frozen=True)
class FewShotOptions:
    """What to evaluate. `tasks`: names of our tasks, of groups of them (`gpt3`, `gpt3_arithmetic`, `gpt3_words`), or of
    the harness's own. `limit`: items per task, None for all. `paper_shots`: 0, 1 and the paper's number of examples
    too, where so many fit. `gpt3_data`: the folder of openai/gpt-3's files. `clean_subset`: an overlap analysis."""

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

    def __post_init__(self) -> None:
        if any(shots < 0 for shots in self.shots) or not (self.shots or self.paper_shots):
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
    overlap: Overlap | None = None

    def sources(self) -> dict[str, Any]:
        """Where our tasks' problems are from, to be reported: scores of different ones do not compare."""
        options = self.options
        words = options.words
        found: dict[str, Any] = {"same_examples": options.same_examples}
        if options.gpt3_data is not None:
            return found | {"gpt3_data": str(options.gpt3_data)}
        return found | {"words": {"source": words.source, "count": len(words.words), "sha256": words.sha256}}

    def items_in_file(self, name: str, task: Any) -> int:
        """Items of the file that a task's items are numbered after, also those that are not asked."""
        if name in self.generated:
            return len(task.problems.scored) + len(task.problems.examples)
        return len(task.eval_docs)

    def check_answers(self, *, n_ctx: int) -> None:
        """ConfigError before any question is asked: a task whose answers leave no room for a question, or that wants
        them chosen as we cannot."""
        for loaded in [{"tasks": self.generated}, *self.loaded]:
            for name, task in loaded["tasks"].items():
                if task.OUTPUT_TYPE == "generate_until":
                    try:
                        read_settings(task.config.generation_kwargs or {}, most=MAX_ANSWER_TOKENS).room(n_ctx=n_ctx)
                    except ConfigError as error:
                        raise ConfigError(f"--tasks {name}: {error}") from None

    def that_fit(self, tokenizer: Tokenizer, *, n_ctx: int) -> "tuple[OpenTasks, list[str]]":
        """The same without those of the paper's numbers of examples that a model's context has no room for, and a line
        that names them."""
        kept, left_out = {}, []
        for key, task in self.generated.items():
            if task.shots not in self.options.shots and task.longest_context(tokenizer, _LOOKED_AT) > n_ctx:
                left_out.append(f"{task.rule.label} with {task.shots}")
            else:
                kept[key] = task
        notes = [f"left out, since their examples do not fit into {n_ctx:,} tokens: {', '.join(left_out)}"]
        return replace(self, generated=kept), notes if left_out else []


def open_tasks(options: FewShotOptions) -> OpenTasks:
    """Make and load the tasks, before any model is.

    ConfigError: `lm_eval` missing, an unknown task, one whose data is not on this machine, or too many examples.
    """
    import_extra("lm_eval", extra="eval")
    from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask
    from gpt.evaluation.few_shot.normalised import check_rules

    check_rules(options.normalise)
    rules, others = choose_tasks(options.tasks)
    if options.paper_shots and others:
        raise ConfigError(f"--num-fewshot paper is for the gpt3 tasks; give {others[0]} a number")
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
        raise ConfigError("--gpt3-data is for the gpt3 tasks, and --tasks names none of them")
    loaded = [
        load_harness_tasks(others, shots, same_examples=options.same_examples) for shots in options.shots if others
    ]
    return OpenTasks(options, generated, loaded, _overlap(options, rules, loaded))


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


def load_harness_tasks(names: Sequence[str], shots: int, *, same_examples: bool = False) -> dict[str, Any]:
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
            f"--tasks {' '.join(names)} could not be loaded, probably because the data is not on this machine "
            f"(HF_HUB_OFFLINE=0 lets it be downloaded): {reason}"
        ) from error
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") != 0:  # 0 is a task's own wish for none
            task.set_config(key="num_fewshot", value=shots)
            _choose_examples(name, task, shots, same=same_examples)
    return loaded


def _choose_examples(name: str, task: Any, shots: int, *, same: bool) -> None:
    """ConfigError where there are fewer examples than asked. `same`: the first ones for every question, as the
    harness's `sampler: first_n` has it."""
    from lm_eval.api.samplers import FirstNSampler

    sampler = getattr(task, "sampler", None)
    if sampler is None or not shots:
        return
    examples = list(sampler.df)
    own = task.config.fewshot_split in (task.config.test_split, task.config.validation_split)
    room = len(examples) - own  # a question is no example of its own
    if shots > room:
        raise ConfigError(f"--num-fewshot {shots}: {name} has {room:,} examples; ask for as many or fewer")
    if same and not isinstance(sampler, FirstNSampler):
        task.sampler = FirstNSampler(examples)


def _overlap(options: FewShotOptions, rules: list[TaskRule], loaded: list[dict[str, Any]]) -> Overlap | None:
    if options.clean_subset is None:
        return None
    if rules and options.gpt3_data is None:
        raise ConfigError(
            "--clean-subset: problems made by rule are in no file that could be searched for; add --gpt3-data DIR, or "
            "leave the gpt3 tasks out"
        )
    names = [rule.name for rule in rules] + [name for tasks in loaded for name in tasks["tasks"]]
    return read_overlap(options.clean_subset, list(dict.fromkeys(names)))
