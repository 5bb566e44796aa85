"""For tests: `triaxial` commands, and requests to a run's model, on ranks that a fork server starts.

    python evaluation_ranks.py JOBS.json FOLDER

A job has a name, a number of ranks, and the words of a command, or under "ask" the run and the layout that answers. The
answers of rank N are in FOLDER/NAME/rankN.json.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from free_ports import free_ports

from launch.processes.local_ranks import fork_server, run_ranks

PAIRS = [
    ("Q: What is 48 plus 76?\nA:", " 124"),
    ("Q: What is 48 plus 76?\nA:", " 12"),
    ("Q: What is 48 plus 76?\nA:", " no"),
    ("Please unscramble the letters into a word, and write that word:\nlyinevitab =", " inevitably"),
    ("", "Q: What"),
    ("Q: What is 5 plus 6?\nA: 11\n\n" * 3 + "Q: What is 7 plus 8?\nA:", " 15"),
    ("What", " is 9"),
]
TASKS = ("gpt3_two_digit_addition", "gpt3_cycle_letters_in_word")
TEXTS = ["Q: What is 5 plus 6?\nA: 11\n\n" * 6, "plus"]


class HarnessRequest:
    """The part of the harness's Instance that an adapter reads."""

    def __init__(self, *arguments):
        self.args = arguments


@contextmanager
def adapter_of(run, *words, **settings):
    """The adapter of a run's model, on the layout that the words name."""
    from gpt.evaluation.few_shot.harness import TriaxialLM
    from launch.config.run_arguments import add_device_arguments, add_layout_arguments, add_run_arguments
    from launch.main import split_overrides
    from launch.runs.open_model import opened_model

    parser = argparse.ArgumentParser()
    for add_arguments in (add_run_arguments, add_device_arguments, add_layout_arguments):
        add_arguments(parser)
    own, overrides = split_overrides([str(run), "--device", "cpu", *words])
    args = parser.parse_args(own)
    args.overrides = overrides
    with opened_model(args) as opened:
        yield TriaxialLM(opened.model, opened.saved.tokenizer, n_ctx=opened.saved.model_config.n_ctx, **settings)


def ask(run, *words):
    """Return a model's answers to requests of each kind."""
    with adapter_of(run, *words, batch_tokens=400, seed=3) as lm:
        greedy = {"until": ["\n"], "max_gen_toks": 7, "do_sample": False}
        drawn = {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 1.5}
        contexts = sorted({context for context, _ in PAIRS})
        texts = lm.generate_until([HarnessRequest(context, greedy) for context in contexts])
        written = [HarnessRequest(context, text) for context, text in zip(contexts, texts, strict=True) if text.strip()]
        return {
            "greedy": lm.loglikelihood(written),
            "log_likelihoods": lm.loglikelihood([HarnessRequest(*pair) for pair in PAIRS * 3]),
            "rolling": lm.loglikelihood_rolling([HarnessRequest(text) for text in TEXTS]),
            "texts": lm.generate_until(
                [HarnessRequest(context, s) for s in (greedy, drawn, drawn) for context in contexts]
            ),
        }


def ask_tasks(run, *words, limit, shots):
    """Return log-likelihoods of the right answers to two of the GPT-3 tasks, and some written answers."""
    from gpt.evaluation.few_shot.gpt3_problems import words_of_python
    from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks

    answers = {}
    with adapter_of(run, *words) as lm:
        for form in ("likelihood", "written"):
            words_of = {"words": words_of_python(), "answers": form}
            tasks = open_tasks(FewShotOptions(TASKS, tuple(shots), limit, **words_of)).generated
            requests = []
            for task in tasks.values():
                task.build_all_requests(limit=limit if form == "likelihood" else 5)
                requests += task.instances
            answers[form] = lm.loglikelihood(requests) if form == "likelihood" else lm.generate_until(requests)
    return answers


def work(rank, jobs_file, number, folder):
    """Run one rank of a job."""
    from launch.main import main

    torch.set_num_threads(1)
    job = json.loads(Path(jobs_file).read_text())[int(number)]
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["ports"][0])})
    if "words" in job:
        assert main(job["words"]) == 0
    if "ask" in job:
        os.environ["MASTER_PORT"] = str(job["ports"][1])
        found = ask_tasks(*job["ask"], **job["tasks"]) if "tasks" in job else ask(*job["ask"])
        Path(folder, f"rank{rank}.json").write_text(json.dumps(found))


def on_layouts(run, layouts, folder, **questions):
    """Return the result of `ask_tasks` on each rank of each layout of (ranks, tensor, pipeline)."""
    jobs = [
        {
            "name": name,
            "ranks": ranks,
            "ask": [str(run), "--parallel.tensor", str(tensor), "--parallel.pipeline", str(pipeline)],
            "tasks": questions,
        }
        for name, (ranks, tensor, pipeline) in layouts.items()
    ]
    run_program(jobs, folder)
    return {
        job["name"]: [json.loads((folder / job["name"] / f"rank{n}.json").read_text()) for n in range(job["ranks"])]
        for job in jobs
    }


def run_program(jobs, folder):
    """Run this program in a process of its own, since a fork server must not inherit the tests' threads."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "jobs.json"), str(folder)],
        env={**os.environ, "HOME": str(folder), "WANDB_API_KEY": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def run_all(jobs_file, out):
    jobs = json.loads(Path(jobs_file).read_text())
    context = fork_server(
        ["lm_eval.evaluator", "gpt.evaluation.few_shot.harness", "launch.commands.evaluate", "launch.commands.train"]
    )
    for number, job in enumerate(jobs):
        job["ports"] = free_ports(2)  # just before the ranks start, so that nobody else takes them
        Path(jobs_file).write_text(json.dumps(jobs))
        folder = Path(out, job["name"])
        folder.mkdir()
        words = [str(jobs_file), str(number), str(folder)]
        run_ranks(context, work, words, nproc=job["ranks"], logs=folder / "logs")


if __name__ == "__main__":
    run_all(*sys.argv[1:])
