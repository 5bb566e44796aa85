"""The problems of gpt3_problems.py as tasks of lm-evaluation-harness. Import this only if `lm_eval` is installed.

A task lets the model write an answer and compares it exactly, or asks for the likelihood of the right answer. It needs
no network.
"""

import random
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import Problem, ProblemSet, TaskRule
from gpt.tokenizer.tokenizers import Tokenizer

# The longest right answer with one token per character, including its space and the final newline.
_ARITHMETIC_TOKENS = len(" -99999\n")
_WORD_TOKENS = 14 + len(" \n")


AnswerForm = Literal["written", "likelihood"]


class GeneratedTask(Task):  # type: ignore[misc]
    """One task with one number of examples. `key` is its name in the harness's results.

    `answers`: "written" generates an answer greedily and compares it. "likelihood" scores the right answer, which
    counts as correct if each of its tokens is the most likely, as in the harness's own arithmetic tasks.
    `same_examples`: every question shows the same examples, which are read once; otherwise each draws its own.
    """

    VERSION = 1

    def __init__(
        self,
        rule: TaskRule,
        problems: ProblemSet,
        *,
        shots: int,
        seed: int,
        answers: AnswerForm = "written",
        same_examples: bool = False,
    ) -> None:
        if shots > len(problems.examples):
            raise ConfigError(
                f"--num-fewshot {shots} is invalid: {rule.name} has {len(problems.examples)} problems for examples. "
                f"Use at most {len(problems.examples)}" + (", or give more words." if rule.about_words else ".")
            )
        self.rule = rule
        self.problems = problems
        self.shots = shots
        self.seed = seed
        self.same_examples = same_examples
        self.OUTPUT_TYPE = "generate_until" if answers == "written" else "loglikelihood"
        self.key = f"{rule.name}/{shots}"
        self.new_tokens = _WORD_TOKENS if rule.about_words else _ARITHMETIC_TOKENS
        settings = {"until": ["\n"], "max_gen_toks": self.new_tokens, "do_sample": False}
        # Task.__init__ would set these too, but it would download a data set and read the settings by the task's name.
        self._config = TaskConfig(
            task=self.key,
            num_fewshot=shots,
            output_type=self.OUTPUT_TYPE,
            generation_kwargs=settings if answers == "written" else None,
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
        """Return instruction, examples and question. Each question draws its own examples (paper, section 2.4), unless
        all show the same. The examples do not depend on what else is evaluated."""
        whose = "all" if self.same_examples else doc["number"]
        rng = random.Random(f"{self.seed}/{self.key}/{whose}")
        shown = rng.sample(self.problems.examples, num_fewshot)
        examples = [f"{problem.question} {problem.answer}" for problem in shown]
        return self.rule.instruction + self.rule.delimiter.join([*examples, self.doc_to_text(doc)])

    def longest_context(self, tokenizer: Tokenizer, max_questions: int) -> int:
        """Return the most tokens that any of the first `max_questions` questions needs, with examples and answer."""
        documents = self.test_docs()[:max_questions]
        contexts = tokenizer.encode_batch([self.fewshot_context(doc, self.shots) for doc in documents])
        return max(map(len, contexts)) + self.new_tokens

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **kwargs: Any) -> None:
        """Build the requests as the harness does, without its progress bar for each task."""
        ranks = {"rank": kwargs.get("rank", 0), "world_size": kwargs.get("world_size", 1)}
        self._instances = [
            self.construct_requests(doc, self.fewshot_context(doc, self.shots), metadata=(self.key, number, 1))
            for number, doc in self.doc_iterator(limit=limit, samples=samples, **ranks)
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        if self.OUTPUT_TYPE == "generate_until":
            arguments: tuple[Any, ...] = (ctx, dict(self.config.generation_kwargs))
        else:
            arguments = (ctx, self.doc_to_target(doc))
        metadata = kwargs["metadata"]
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=arguments, idx=0, metadata=metadata)

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """Score one answer.

        Written: 1 if the answer, stripped of white space, is right. Likelihood: 1 if each token of the right answer is
        the most likely, and the log-likelihood of the right answer in nats.
        """
        if self.OUTPUT_TYPE == "generate_until":
            return {"exact_match": float(results[0].strip() == doc["answer"])}
        log_likelihood, is_greedy = results[0]
        return {"acc": float(is_greedy), "log_likelihood": log_likelihood}

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(self._metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self._metrics(), True)

    def _metrics(self) -> tuple[str, ...]:
        return ("exact_match",) if self.OUTPUT_TYPE == "generate_until" else ("acc", "log_likelihood")


def _documents(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{"number": i, "question": p.question, "answer": p.answer} for i, p in enumerate(problems)]
