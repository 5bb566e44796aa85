"""The problems of gpt3_problems.py as tasks of lm-evaluation-harness; imported only where `lm_eval` is installed.

A task has an answer written and compares it exactly, or asks for the right answer's likelihood. No network is needed.
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

# The longest right answer in single characters, with its space and the newline that ends it.
_ARITHMETIC_TOKENS = len(" -99999\n")
_WORD_TOKENS = 14 + len(" \n")


AnswerForm = Literal["written", "likelihood"]


class GeneratedTask(Task):  # type: ignore[misc]
    """One task at one number of examples. `key` names it in the harness's results.

    `answers`: "written" greedily and compared, or "likelihood": what the model gives the right one, which counts if
    each of its tokens is the likeliest, as in the harness's own arithmetic tasks. `same_examples`: every question shows
    the same, which are then read once; else each draws its own.
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
                f"--num-fewshot {shots}: {rule.name} has {len(problems.examples)} problems set apart as examples; "
                "ask for as many or fewer" + (", or give more words" if rule.about_words else "")
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
        # What Task.__init__ would set, which would also download a data set and take the settings for a task's name.
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
        """Instruction, examples, question. Each question draws its own examples (paper, section 2.4) unless all show
        the same; they do not depend on what else is evaluated."""
        whose = "all" if self.same_examples else doc["number"]
        rng = random.Random(f"{self.seed}/{self.key}/{whose}")
        shown = rng.sample(self.problems.examples, num_fewshot)
        examples = [f"{problem.question} {problem.answer}" for problem in shown]
        return self.rule.instruction + self.rule.delimiter.join([*examples, self.doc_to_text(doc)])

    def longest_context(self, tokenizer: Tokenizer, most: int) -> int:
        """Tokens of the longest of the first `most` questions with its examples, and room for the answer."""
        documents = self.test_docs()[:most]
        contexts = tokenizer.encode_batch([self.fewshot_context(doc, self.shots) for doc in documents])
        return max(map(len, contexts)) + self.new_tokens

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As the harness does it, without its progress bar for each task."""
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
        """Written: 1 where the answer, without space around it, is the right one. Likelihood: 1 where the right one is
        the likeliest token by token, and its log-likelihood in nats."""
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
