"""The problems of gpt3_problems.py as tasks of lm-evaluation-harness; imported only where `lm_eval` is installed.

A task generates an answer and compares it exactly. It needs no file, no data set and no network.
"""

import random
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from gpt.errors import ConfigError
from gpt.evaluation.gpt3_problems import Problem, ProblemSet, TaskRule

# The longest right answer in single characters, with its space and the newline that ends it.
_ARITHMETIC_TOKENS = len(" -99999\n")
_WORD_TOKENS = 14 + len(" \n")


class GeneratedTask(Task):  # type: ignore[misc]
    """One task at one number of examples. `key` names it in the harness's results."""

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(self, rule: TaskRule, problems: ProblemSet, *, shots: int, seed: int) -> None:
        if shots > len(problems.examples):
            raise ConfigError(
                f"--num-fewshot {shots}: {rule.name} has {len(problems.examples)} problems set apart as examples; "
                "ask for as many or fewer" + (", or give more words" if rule.about_words else "")
            )
        self.rule = rule
        self.problems = problems
        self.shots = shots
        self.seed = seed
        self.key = f"{rule.name}/{shots}"
        new_tokens = _WORD_TOKENS if rule.about_words else _ARITHMETIC_TOKENS
        settings = {"until": ["\n"], "max_gen_toks": new_tokens, "do_sample": False}
        # What Task.__init__ would set, which would also download a data set and take the settings for a task's name.
        self._config = TaskConfig(
            task=self.key, num_fewshot=shots, output_type=self.OUTPUT_TYPE, generation_kwargs=settings
        )
        self._instances: list[Instance] | None = None
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]

    def has_training_docs(self) -> bool:
        return True

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def training_docs(self) -> list[dict[str, Any]]:
        return _documents(self.problems.examples)

    def test_docs(self) -> list[dict[str, Any]]:
        return _documents(self.problems.scored)

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return str(doc["question"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return f" {doc['answer']}"

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **kwargs: Any) -> str:
        """Instruction, examples, question. Each question draws its own examples (paper, section 2.4), the same ones
        whatever else is evaluated."""
        rng = random.Random(f"{self.seed}/{self.key}/{doc['number']}")
        shown = rng.sample(self.problems.examples, num_fewshot)
        examples = [f"{problem.question} {problem.answer}" for problem in shown]
        return self.rule.instruction + self.rule.delimiter.join([*examples, self.doc_to_text(doc)])

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As the harness does it, without its progress bar for each task."""
        ranks = {"rank": kwargs.get("rank", 0), "world_size": kwargs.get("world_size", 1)}
        self._instances = [
            self.construct_requests(doc, self.fewshot_context(doc, self.shots), metadata=(self.key, number, 1))
            for number, doc in self.doc_iterator(limit=limit, samples=samples, **ranks)
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        settings = dict(self.config.generation_kwargs)
        metadata = kwargs["metadata"]
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=(ctx, settings), idx=0, metadata=metadata)

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        """1 where the answer, without space around it, is the right one."""
        return {"exact_match": float(results[0].strip() == doc["answer"])}

    def aggregation(self) -> dict[str, Any]:
        return {"exact_match": mean}

    def higher_is_better(self) -> dict[str, bool]:
        return {"exact_match": True}


def _documents(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{"number": i, "question": p.question, "answer": p.answer} for i, p in enumerate(problems)]
