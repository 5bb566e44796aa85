"""`triaxial demo`: prepare, train, evaluate, generate, convert and report, with the commands of a user.

`--instruct` continues from its model: see launch/demos/instruct.py.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from gpt.telemetry.console import for_terminal
from gpt.token_files.corpus import open_tokens
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.run_config import RunConfig, read_run_config
from launch.demos.commands import is_finished, read_report, run_command, start_over_if_finished
from launch.evaluation.continuations import N_CHOICES, TASK, write_continuations

CORPUS_RECIPE = "launch/recipes/demo_corpus.toml"
TRAIN_RECIPE = "launch/recipes/demo.toml"
CORPUS = Path("data/demo")
PROCESSES = 4
PROMPT = "Return the"
TRAIN = ["train", TRAIN_RECIPE, "--nproc", str(PROCESSES)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=int, default=100, help="questions of the evaluation (default: 100)")
    parser.add_argument(
        "--instruct",
        action="store_true",
        help="teach the demo's model to follow instructions: fine-tuning, a reward model, PPO, and a page of answers",
    )


def run(args: argparse.Namespace) -> int:
    config = read_run_config(TRAIN_RECIPE, [])
    if args.instruct:
        from launch.demos.instruct import run_instruct

        base = [] if is_finished(config) else [["prepare", CORPUS_RECIPE], TRAIN]
        return run_instruct(config, base)
    directory = config.run.directory
    start_over_if_finished(config)
    export, scores, page = directory / "hf", directory / "evaluation.json", directory / "report.html"
    shutil.rmtree(export, ignore_errors=True)
    questions = ["--tasks", TASK, "--include-path", str(directory / TASK), "--num-fewshot", "0"]
    sampling = ["--num-samples", "3", "--max-new-tokens", "40", "--temperature", "0.5", "--stop", "\n"]
    steps = {
        "prepare": ["prepare", CORPUS_RECIPE],
        "train": TRAIN,
        "evaluate": ["evaluate", str(directory), *questions, "--limit", str(args.items), "--json", str(scores)],
        "generate": ["generate", str(directory), "--prompt", PROMPT, *sampling],
        "convert": ["convert", str(directory), "--to", "hf", "--output", str(export)],
        "report": ["report", str(directory), "--html", str(page)],
    }
    seconds = {}
    for name, words in steps.items():
        started_at = time.perf_counter()
        if name == "evaluate":
            write_questions(config)
        status = run_command(words)
        if status != 0:
            return status
        seconds[name] = round(time.perf_counter() - started_at, 2)
    summary = write_summary(directory, seconds)
    print("\n" + "\n".join(f"{key:30} {show(value)}" for key, value in summary.items()))
    print("\n" + "\n".join(map(for_terminal, conclusion(summary))))
    print()
    print(for_terminal(f"report: {page}, to open in a browser; summary: {directory / 'summary.json'}"))
    print(f"try: triaxial generate {directory} --prompt '...'; triaxial report {directory}")  # whole, to be copied
    return 0


def write_questions(config: RunConfig) -> None:
    """Make the questions of the evaluation: passages of validation documents, which training has not read."""
    (validation,) = config.data.validation
    tokenizer = load_tokenizer(Path(config.data.tokenizer))
    write_continuations(config.run.directory / TASK, open_tokens(Path(validation.path)), tokenizer)


def conclusion(summary: dict[str, Any]) -> list[str]:
    """Say what the model has learned, compared with one that has learned nothing."""
    loss, vocab_size = summary["validation_loss_nats"], summary["vocab_size"]
    return [
        f"Validation loss: {loss:.2f} nats a token. Equal chances for all {vocab_size:,} tokens have "
        f"{math.log(vocab_size):.2f}, their frequencies alone {summary['unigram_entropy_nats']:.2f}.",
        f"It doubts between {math.exp(loss):,.0f} tokens, not {vocab_size:,} (the perplexity).",
        f"It finds which of {N_CHOICES} texts continues a passage in {summary['continuations_found']:.0%} of "
        f"{summary['continuations']} cases. Guessing finds {1 / N_CHOICES:.0%}.",
    ]


def write_summary(directory: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Write `summary.json` in the run directory: the main figures from the reports of the steps."""
    trained = read_report(directory / "train_summary.json")
    corpus = read_report(CORPUS / "corpus.json")
    exported = read_report(directory / "hf" / "triaxial_export.json")
    (score,) = read_report(directory / "evaluation.json")["few_shot"]
    summary = {
        "validation_loss_nats": next(iter(trained["validation_loss_nats"].values())),
        "unigram_entropy_nats": corpus["unigram_entropy_nats"],
        "vocab_size": corpus["vocab_size"],
        "continuations_found": score["value"],
        "continuations": score["items"],
        "parameters": trained["parameters"],
        "tokens_seen": trained["tokens_seen"],
        "tokens_per_s": round(trained["tokens_per_s"], 1),
        "corpus_documents": corpus["documents"],
        "corpus_tokens": corpus["tokens"],
        "hf_max_relative_logit_error": exported["max_relative_logit_error"],
        "seconds_by_step": seconds,
    }
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
