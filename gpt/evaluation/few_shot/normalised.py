"""Normalise the likelihoods of a question's choices as in the GPT-3 paper (arXiv 2005.14165, section 2.4).

`tokens`: log-likelihood per token, the paper's rule for most tasks. `answer`: log-likelihood minus that of the same
choice after "Answer:" alone, its rule for ARC, OpenBookQA and RACE. For comparison: the harness's `acc` sums over
tokens, its `acc_norm` divides by characters. Import this only if `lm_eval` is installed.
"""

from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from gpt.errors import ConfigError

if TYPE_CHECKING:
    from gpt.evaluation.few_shot.harness import TriaxialLM

METRICS = {"tokens": "acc_per_token", "answer": "acc_over_answer"}
_ANSWER_CONTEXT = "Answer:"  # a choice begins with the space that follows


def check_rules(rules: tuple[str, ...]) -> None:
    """Raise ConfigError for an unknown rule."""
    for rule in rules:
        if rule not in METRICS:
            raise ConfigError(f"--normalise {rule} is invalid: the rules are {' and '.join(METRICS)}.")


def normalised_items(lm: "TriaxialLM", task: Any, rules: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Return by metric and item: 1 if the right choice is the best under the rule, else 0. Empty for a task that is not
    multiple choice."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    items: dict[int, list[Any]] = {}
    for instance in task.instances:
        items.setdefault(instance.doc_id, []).append(instance)
    choices = {item: _choices(task, instances) for item, instances in items.items()}
    instances_of_choices = [instance for instances in choices.values() for instance in instances]
    alone = _after_answer(lm, instances_of_choices) if "answer" in rules else {}
    found: dict[str, dict[int, float]] = {METRICS[rule]: {} for rule in rules}
    for item, instances in choices.items():
        right = _right_choices(task, instances)
        for rule in rules:
            values = []
            for instance in instances:
                context, continuation = instance.args[:2]
                log_likelihood = instance.resps[0][0]
                if rule == "tokens":
                    values.append(log_likelihood / max(1, lm.continuation_length(context, continuation)))
                else:
                    values.append(log_likelihood - alone[continuation])
            found[METRICS[rule]][item] = float(values.index(max(values)) in right)
    return found


def _choices(task: Any, instances: list[Any]) -> list[Any]:
    """Return the instances that compare the item's choices, in order. Some metrics add more instances after them."""
    n = len(task.doc_to_choice(instances[0].doc))
    return sorted(instances, key=lambda instance: instance.idx)[:n]


def _after_answer(lm: "TriaxialLM", instances: list[Any]) -> dict[str, float]:
    continuations = list(dict.fromkeys(instance.args[1] for instance in instances))
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(_ANSWER_CONTEXT, text), idx=0)
        for text in continuations
    ]
    return {
        text: log_likelihood
        for text, (log_likelihood, _) in zip(continuations, lm.loglikelihood(requests), strict=True)
    }


def _right_choices(task: Any, instances: list[Any]) -> set[int]:
    """Return the indices of the right choices, as the harness finds them."""
    doc = instances[0].doc
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    names = task.doc_to_choice(doc)
    right = set()
    for one in gold if isinstance(gold, list) else [gold]:
        if isinstance(one, str):
            right |= {names.index(one)} if one in names else set()
        else:
            right.add(int(one))
    return right
