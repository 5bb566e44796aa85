"""Few-shot evaluation on one process: the very same requests to our model and to lm-evaluation-harness's `hf` backend.

    python benchmarks/few_shot.py [--run DIR] [--hugging-face DIR] [--items 200] [--rounds 5] [--threads 2]
                                  [--dtype float32] [--cases NAME ...] [--hf-batch-sizes 1 8 16 32] [--json FILE]

DIR: SmolLM2 as `triaxial convert` made it a run, and the Hugging Face folder that it came from. A case is a task of the
GPT-3 suite (2-digit addition, cycled letters), a number of examples, whether all questions show the same examples or
each its own, and how it is asked: the right answer's likelihood, four choices, or an answer written. Both get the texts
and do their own tokenization; the time is from texts to answers. Before the rounds the peer tries its batch sizes on
part of each case and keeps the fastest ("auto" is left out: on a CPU it looks for the largest batch of full contexts
that memory holds, which is tens of GB of logits). Every answer is compared: log-likelihoods, greedy flags, texts.
Processor time stands beside the clock's, for machines that do other work too; take one thread then. The last line
printed is one JSON object. Needs the extra "eval" and accelerate.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import side_by_side
import torch

from gpt.errors import import_extra
from gpt.evaluation.few_shot.gpt3_problems import make_problems, task_rules, words_of_python

OURS, PEER = "triaxial", "lm_eval hf"
TUNED_ON = 16  # requests of a case


@dataclass(frozen=True)
class Case:
    """What is asked, and how often the beginnings agree."""

    task: str
    shots: int
    same: bool
    form: str  # likelihood, choices, written

    @property
    def name(self) -> str:
        whose = "" if not self.shots else ", the same" if self.same else ", its own"
        return f"{self.task}, {self.shots} examples{whose}, {self.form}"


TASKS = {"addition": "gpt3_two_digit_addition", "letters": "gpt3_cycle_letters_in_word"}
CASES = {
    "add10": Case("addition", 10, True, "likelihood"),
    "letters10": Case("letters", 10, True, "likelihood"),
    "choices10": Case("letters", 10, True, "choices"),
    "write-add10": Case("addition", 10, True, "written"),
    "write-letters10": Case("letters", 10, True, "written"),
    "own-add10": Case("addition", 10, False, "likelihood"),
    "own-choices10": Case("letters", 10, False, "choices"),
    "own-write-add10": Case("addition", 10, False, "written"),
    "add0": Case("addition", 0, True, "likelihood"),
    "letters0": Case("letters", 0, True, "likelihood"),
    "write-add0": Case("addition", 0, True, "written"),
}


def requests_of(case: Case, items: int) -> list[Any]:
    """The harness's own request objects, made anew each time: it keeps answers in them."""
    from gpt.evaluation.few_shot.gpt3_tasks import GeneratedTask

    rule = next(rule for rule in task_rules() if rule.name == TASKS[case.task])
    problems = make_problems(rule, seed=0, words=words_of_python())
    answers = "written" if case.form == "written" else "likelihood"
    task = GeneratedTask(rule, problems, shots=case.shots, seed=0, answers=answers, same_examples=case.same)
    task.build_all_requests(limit=items)
    instances: list[Any] = task.instances
    return [choice for i in instances for choice in with_choices(i, problems)] if case.form == "choices" else instances


def with_choices(instance: Any, problems: Any) -> list[Any]:
    """The question four times: with the right word, and three others."""
    from lm_eval.api.instance import Instance

    context, right = instance.args
    rng = random.Random(context)
    others = [p.answer for p in rng.sample(problems.examples, 4) if p.answer != right.strip()][:3]
    return [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, answer), idx=i)
        for i, answer in enumerate([right, *(f" {other}" for other in others)])
    ]


def ask(lm: Any, case: Case, requests: list[Any]) -> list[Any]:
    """Texts, or pairs of log-likelihood and greedy flag."""
    if case.form == "written":
        texts: list[str] = lm.generate_until(requests, disable_tqdm=True)
        return texts
    return [[float(value), bool(flag)] for value, flag in lm.loglikelihood(requests, disable_tqdm=True)]


def build_ours(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from gpt.evaluation.few_shot.harness import TriaxialLM
    from gpt.inference.cpu_model import packed
    from gpt.inference.model import LocalModel
    from gpt.tokenizer.special_tokens import special_tokens_of
    from launch.runs.imported_run import HUGGING_FACE
    from launch.runs.saved_run import load_run

    loaded = load_run(args.run, dtype=getattr(torch, args.dtype))
    config = loaded.saved.model_config
    saved = loaded.saved
    special = special_tokens_of(saved.run_directory / HUGGING_FACE, saved.tokenizer_file, saved.tokenizer)
    model = packed(LocalModel(loaded.model), rows=8192)
    lm = TriaxialLM(model, saved.tokenizer, n_ctx=config.n_ctx, special=special, sharing=not args.without_sharing)
    warm_up = CASES[args.cases[0]]
    ask(lm, warm_up, requests_of(warm_up, 8))
    return lambda: {"cases": measured(args, lambda name: lm), "batch_sizes": {}}


def build_peer(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import_extra("accelerate", extra="eval")
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(args.hugging_face), dtype=args.dtype, device="cpu", batch_size=args.hf_batch_sizes[0])

    def with_size(size: int) -> Any:
        lm.batch_size_per_gpu = size
        return lm

    best = {}
    for name in args.cases:
        spans = {}
        for size in args.hf_batch_sizes:
            requests = requests_of(CASES[name], args.items)[:TUNED_ON]
            started_at = time.process_time()
            ask(with_size(size), CASES[name], requests)
            spans[size] = time.process_time() - started_at
        best[name] = min(spans, key=lambda size: spans[size])
        print(f"{name}: {', '.join(f'batch {size}: {s:.2f} s' for size, s in spans.items())}", file=sys.stderr)
    return lambda: {"cases": measured(args, lambda name: with_size(best[name])), "batch_sizes": best}


def measured(args: argparse.Namespace, model_for: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """All cases once: time and answers."""
    found = {}
    for name in args.cases:
        requests = requests_of(CASES[name], args.items)
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        answers = ask(model_for(name), CASES[name], requests)
        spans = {"elapsed_s": time.perf_counter() - started_at, "cpu_s": time.process_time() - cpu_started_at}
        found[name] = {**spans, "answers": answers}
    return found


def compare(case: Case, items: int, ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """How far the answers agree, and what each makes of the task."""
    right = [request.doc.get("answer") for request in requests_of(case, items)]
    if case.form == "written":
        return {
            "requests": len(ours),
            "same_texts": sum(a == b for a, b in zip(ours, theirs, strict=True)),
            "accuracy": [
                sum(text.strip() == r for text, r in zip(texts, right, strict=True)) / len(right)
                for texts in (ours, theirs)
            ],
        }
    accuracies = []
    for answers in (ours, theirs):
        if case.form == "choices":
            fours = [answers[i : i + 4] for i in range(0, len(answers), 4)]
            accuracies.append(sum(max(range(4), key=lambda k: four[k][0]) == 0 for four in fours) / len(fours))
        else:
            accuracies.append(sum(flag for _, flag in answers) / len(answers))
    return {
        "requests": len(ours),
        "max_log_likelihood_difference": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
        "same_greedy_flags": sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)),
        "accuracy": accuracies,
    }


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.contender is not None:
        side_by_side.serve(lambda: {OURS: build_ours, PEER: build_peer}[args.contender](args))
        return None
    for module in ("lm_eval", "transformers", "accelerate"):
        import_extra(module, extra="eval")
    if args.json is not None:
        side_by_side.check_writable(args.json)
    own = [argument for argument in sys.argv[1:] if argument != "serve"]
    commands = {name: [sys.executable, __file__, *own, "--contender", name, "serve"] for name in (OURS, PEER)}
    rounds = side_by_side.alternate(
        commands, rounds=args.rounds, threads=args.threads, report=lambda t: print(t, flush=True)
    )
    cases = {}
    for name in args.cases:
        spans, cpu = (
            {who: [r[who]["cases"][name][clock] for r in rounds] for who in (OURS, PEER)}
            for clock in ("elapsed_s", "cpu_s")
        )
        answers = [rounds[0][who]["cases"][name]["answers"] for who in (OURS, PEER)]
        cases[name] = {
            "case": CASES[name].name,
            **compare(CASES[name], args.items, *answers),
            "median_s": {who: statistics.median(values) for who, values in spans.items()},
            "median_cpu_s": {who: statistics.median(values) for who, values in cpu.items()},
            "hf_batch_size": rounds[0][PEER]["batch_sizes"][name],
            "times_as_fast": side_by_side.speed_ratios(spans, OURS)[PEER],
            "times_as_fast_by_cpu": side_by_side.speed_ratios(cpu, OURS)[PEER],
        }
        print(f"{CASES[name].name}: {side_by_side.rounded(cases[name])}", flush=True)
    return {
        "benchmark": "few_shot",
        "processor": side_by_side.processor(),
        "threads": args.threads,
        "dtype": args.dtype,
        "items": args.items,
        "rounds": args.rounds,
        "cases": cases,
        "peak_memory_bytes": {who: rounds[-1][who]["peak_memory_bytes"] for who in (OURS, PEER)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("/tmp/smol_run"))
    parser.add_argument("--hugging-face", type=Path, default=Path("/tmp/smol_hf"))
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--hf-batch-sizes", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--without-sharing", action="store_true", help="ours reads every request whole")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", choices=(OURS, PEER), help=argparse.SUPPRESS)
    parser.add_argument("serve", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    return side_by_side.report_result(lambda: measure(args), args.json)


if __name__ == "__main__":
    sys.exit(main())
