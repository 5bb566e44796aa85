"""The prompts of the GPT-3 tasks in lm-evaluation-harness."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

ADD = "gpt3_two_digit_addition"


def test_prompts_of_a_task(options: Callable[..., FewShotOptions]) -> None:
    tasks = open_tasks(options("gpt3_two_digit_addition", "gpt3_reversed_words", shots=(0, 2))).generated
    for task in tasks.values():
        task.build_all_requests(limit=3)
        assert len(task.instances) == 3
    prompts = {key: [instance.args[0] for instance in task.instances] for key, task in tasks.items()}
    assert all(re.fullmatch(r"Q: What is \d+ plus \d+\?\nA:", p) for p in prompts["gpt3_two_digit_addition/0"])
    shown = r"Q: What is \d+ plus \d+\?\nA: \d+\n\n"
    assert all(re.fullmatch(rf"({shown}){{2}}Q: .*\?\nA:", p) for p in prompts["gpt3_two_digit_addition/2"])
    instruction = "Please unscramble the letters into a word, and write that word:\n"
    assert all(re.fullmatch(rf"{instruction}[a-z]+ =", p) for p in prompts["gpt3_reversed_words/0"])
    assert all(
        re.fullmatch(rf"{instruction}([a-z]+ = [a-z]+\n){{2}}[a-z]+ =", p) for p in prompts["gpt3_reversed_words/2"]
    )
    assert len(set(prompts["gpt3_reversed_words/2"])) == 3, "each question draws its own examples"
    again = open_tasks(options("gpt3_reversed_words", shots=(2,))).generated["gpt3_reversed_words/2"]
    again.build_all_requests(limit=2)
    assert [i.args[0] for i in again.instances] == prompts["gpt3_reversed_words/2"][:2], (
        "they do not depend on what else is evaluated"
    )


def test_the_same_examples_for_every_question(options: Callable[..., FewShotOptions]) -> None:
    def contexts(**others: Any) -> list[str]:
        task = open_tasks(options(ADD, shots=(3,), **others)).generated[f"{ADD}/3"]
        task.build_all_requests(limit=5)
        return [instance.args[0] for instance in task.instances]

    shared = contexts(same_examples=True)
    assert len({context.rpartition("\n\n")[0] for context in shared}) == 1
    assert len(set(shared)) == 5
    assert len({context.rpartition("\n\n")[0] for context in contexts()}) == 5
    assert contexts(same_examples=True) == shared
