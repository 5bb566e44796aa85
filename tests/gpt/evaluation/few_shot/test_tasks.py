"""Options of few-shot tasks: names, groups, numbers of examples, and what is refused before a model is loaded."""

from collections.abc import Callable
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import TaskRule, WordList
from gpt.evaluation.few_shot.scores import few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, choose_tasks, open_tasks
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

ADD = "gpt3_two_digit_addition"


def choose(*names: str) -> list[TaskRule]:
    return choose_tasks(names)[0]


def test_names_of_tasks_and_groups() -> None:
    assert [len(choose(name)) for name in ("gpt3", "gpt3_arithmetic", "gpt3_words", "gpt3_reversed_words")] == [
        15,
        10,
        5,
        1,
    ]
    assert len(choose("gpt3_words", "gpt3", "gpt3_reversed_words")) == 15
    assert choose_tasks(["gpt3_words", "hellaswag"])[1] == ["hellaswag"]


def test_the_papers_numbers_of_examples_are_used_where_they_fit(
    tokenizer: Tokenizer, options: Callable[..., FewShotOptions], words: WordList
) -> None:
    longer = WordList(tuple(f"{word}{word}" for word in words.words * 9), "longer ones made here")
    made = open_tasks(FewShotOptions((ADD, "gpt3_reversed_words"), (), None, longer, paper_shots=True))
    assert list(made.generated) == [f"{ADD}/{k}" for k in (0, 1, 50)] + [
        f"gpt3_reversed_words/{k}" for k in (0, 1, 100)
    ]
    fitting, notes = made.that_fit(tokenizer, n_ctx=100)
    assert list(fitting.generated) == [f"{name}/{k}" for name in (ADD, "gpt3_reversed_words") for k in (0, 1)]
    assert notes == ["left out, since their examples do not fit into 100 tokens: 2D+ with 50, RW with 100"]
    assert made.that_fit(tokenizer, n_ctx=10_000)[0].generated == made.generated
    kept, notes = open_tasks(options(ADD, shots=(7,))).that_fit(tokenizer, n_ctx=20)
    assert (list(kept.generated), notes) == ([f"{ADD}/7"], []), "a number that the user gave stays"


def test_the_harness_tasks_take_numbers_of_examples(
    own_task: str, model: GPT, tokenizer: Tokenizer, options: Callable[..., FewShotOptions]
) -> None:
    tasks = open_tasks(options(own_task, shots=(2,), same_examples=True))
    (score,) = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    assert (score.shots, score.items) == (2, 12)
    contexts = [instance.args[0] for instance in tasks.loaded[0]["tasks"][own_task].instances]
    assert len({context.rpartition("\n\n")[0] for context in contexts}) == 1
    with pytest.raises(ConfigError, match="--num-fewshot 4 is invalid: own_choices has 3 examples"):
        open_tasks(options(own_task, shots=(4,)))
    with pytest.raises(ConfigError, match="paper is only valid for the gpt3 tasks"):
        open_tasks(options(own_task, shots=(), paper_shots=True))
    with pytest.raises(ConfigError, match="--normalise length is invalid: the rules are tokens and answer"):
        open_tasks(options(own_task, normalise=("length",)))


def test_answers_that_cannot_fit_are_refused_before_any_question(
    own_task: str, options: Callable[..., FewShotOptions]
) -> None:
    tasks = open_tasks(options(ADD, own_task))
    tasks.check_answers(n_ctx=96)
    with pytest.raises(ConfigError, match=f"--tasks {ADD}/0: a task asks for 8 new tokens, which leaves no room"):
        tasks.check_answers(n_ctx=8)
    task = tasks.loaded[0]["tasks"][own_task]
    task.OUTPUT_TYPE = "generate_until"
    task.set_config(key="generation_kwargs", value={"until": ["."]})
    with pytest.raises(ConfigError, match=f"--tasks {own_task}: a task asks for 256 new tokens"):
        tasks.check_answers(n_ctx=256)
    tasks.check_answers(n_ctx=257)
    task.set_config(key="generation_kwargs", value={"num_beams": 4})
    with pytest.raises(ConfigError, match=f"--tasks {own_task}: .* num_beams = 4"):
        tasks.check_answers(n_ctx=257)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda options: options("gpt3", shots=(-1,)), "--num-fewshot -1"),
        (lambda options: options("gpt3", shots=()), "--num-fewshot"),
        (lambda options: options("gpt3", limit=0), "--limit 0"),
        (
            lambda options: open_tasks(options("gpt3_reversed_words", shots=(13,))),
            "--num-fewshot 13 is invalid: .* has 12 problems for examples",
        ),
    ],
)
def test_impossible_options_are_refused(make: Any, message: str, options: Callable[..., FewShotOptions]) -> None:
    with pytest.raises(ConfigError, match=message):
        make(options)
