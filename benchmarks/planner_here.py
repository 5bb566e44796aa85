"""Predict the step of 12 layouts from this machine's profile, then train each of them, and compare.

    python benchmarks/planner_here.py [--profile FILE] [--output FILE.md] [--json FILE] [--rounds 2] [--minutes 8]

Without --profile it measures one first, and keeps it as `triaxial doctor --measure` does. Each layout is a real
`triaxial train` of random tokens in a fresh process, once in each round; its step time is the median of all rounds
without the first steps of each run. Nothing is fitted to these runs. Use an idle machine: the profile takes about 3
minutes on two cores, each round of 12 layouts about 5. A second table shows the predicted parts of each layout's step.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.token_files.files import TokenFileWriter
from launch.config.run_config import RunConfig, read_run_config
from launch.planning.plan import given_layout
from launch.profiling.machine_profile import machine_cluster, measure, profile_for_here, summary
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.hardware.tables import read_hardware
from parallel.planner.machine.profile import MachineProfile, write_profile
from parallel.planner.published.validate import ErrorSummary, covering_spread
from parallel.planner.published.validate import summary as error_summary
from parallel.planner.step_time.step import StepTime, step_time

FIRST_STEPS = 4  # of a run that are not counted: allocation, first use of kernels
RECIPE = """
[run]
directory = "{folder}/run"
[model]
vocab_size = {vocab}
n_ctx = {context}
n_layers = {layers}
d_model = {width}
n_heads = {heads}
[data]
tokenizer = "{folder}"
seq_len = {context}
train = [{{ path = "{folder}/train", name = "random" }}]
validation = [{{ path = "{folder}/validation", name = "random" }}]
[batch]
micro_batch_size = 1
global_batch_tokens = {batch}
[parallel]
precision = "{precision}"
[train]
total_tokens = {total}
[checkpoint]
every_s = 0
[metrics]
wandb = "disabled"
log_every_steps = 1
"""
PIPELINE = {"pipeline": 2}
# (name, settings of [parallel], micro-batch size)
LAYOUTS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("one process", {}, 4),
    ("one process, micro-batch 1", {}, 1),
    ("one process, recompute full", {"recompute": "full"}, 4),
    ("tensor 2", {"tensor": 2}, 4),
    ("tensor 2, micro-batch 1", {"tensor": 2}, 1),
    ("pipeline 2", PIPELINE, 1),
    ("pipeline 2, recompute selective", {**PIPELINE, "recompute": "selective"}, 2),
    ("pipeline 2, interleaved", {**PIPELINE, "schedule": "interleaved_1f1b"}, 1),
    ("pipeline 2, zero bubble", {**PIPELINE, "schedule": "interleaved_zero_bubble"}, 1),
    ("data 2, ZeRO 1", {"data": 2, "zero_stage": 1}, 2),
    ("data 2, ZeRO 2", {"data": 2, "zero_stage": 2}, 1),
    ("data 2, ZeRO 3", {"data": 2, "zero_stage": 3}, 1),
)
FOUR = ("tensor 2 x data 2", {"tensor": 2, "data": 2}, 1)  # on two cores: only if the profile has times of 4 ranks


@dataclass(frozen=True)
class Outcome:
    """A layout's predicted and measured seconds of a step. `spread`: quartiles of the measured steps, relative.

    `steps`: the seconds of each counted step, in the order in which they were measured.
    """

    name: str
    ranks: int
    predicted: StepTime
    measured: float
    spread: float
    steps: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        return self.predicted.seconds / self.measured - 1


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: compare(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="of this machine (default: measure one)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as Markdown")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures as JSON, and beside them the profile"
    )
    parser.add_argument("--rounds", type=int, default=2, help="runs of each layout")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no round that would end later")
    parser.add_argument("--steps", type=int, default=16, help="steps of a run, the first 4 not counted")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=8, help="in a step, over all ranks")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--only", help="layouts whose name contains this")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> dict[str, Any]:
    started_at = time.perf_counter()
    if args.json is not None:
        side_by_side.check_writable(args.json)
    with tempfile.TemporaryDirectory(prefix="triaxial_planner_here_") as name:
        folder = Path(name)
        profile = read_or_measure(args)
        if args.json is not None:
            write_profile(args.json.with_suffix(".profile.json"), profile)  # its fits can be repeated later
        print("\n".join(summary(profile)), flush=True)
        chosen = [*LAYOUTS, *([FOUR] if any(each.ranks == 4 for each in profile.by_ranks) else [])]
        chosen = [layout for layout in chosen if args.only is None or args.only in layout[0]]
        recipe = write_recipe(args, folder)
        predicted = [predict(recipe, settings, size, profile) for _, settings, size in chosen]
        spans = train_rounds(args, chosen, predicted, recipe, started_at=started_at)
    outcomes = [
        Outcome(layout[0], ranks_of(layout[1]), step, statistics.median(found), spread_of(found), tuple(found))
        for layout, step, found in zip(chosen, predicted, spans, strict=True)
    ]
    lines = report(args, profile, outcomes, minutes=(time.perf_counter() - started_at) / 60)
    print("\n" + "\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return as_json(profile, outcomes)


def train_rounds(
    args: argparse.Namespace,
    chosen: Sequence[tuple[str, dict[str, Any], int]],
    predicted: Sequence[StepTime],
    recipe: Path,
    *,
    started_at: float,
) -> list[list[float]]:
    """Seconds of every counted step by layout. A round that would end after --minutes is not started."""
    spans: list[list[float]] = [[] for _ in chosen]
    round_s = 0.0
    for number in range(args.rounds):
        begun_at = time.perf_counter()
        if begun_at - started_at + round_s > 60 * args.minutes:
            print(f"stopped after {number} rounds: another one would end after {args.minutes:g} minutes", flush=True)
            break
        for i, (name, settings, size) in enumerate(chosen):
            spans[i] += run_layout(recipe, recipe.parent / f"run-{number}-{i}", settings, size)
            found = f"{statistics.median(spans[i]):.3f} s, predicted {predicted[i].seconds:.3f} s"
            print(f"round {number + 1}: {name}: {found}", flush=True)
        round_s = time.perf_counter() - begun_at
    return spans


def read_or_measure(args: argparse.Namespace) -> MachineProfile:
    if args.profile is not None:
        return profile_for_here(args.profile)
    path, profile = measure(None, ranks=None, precisions=[args.precision])
    print(f"wrote {path}", flush=True)
    return profile


def write_recipe(args: argparse.Namespace, folder: Path) -> Path:
    sequences = {"train": args.steps * args.sequences, "validation": 2 * args.sequences}  # few: each run evaluates once
    for split, count in sequences.items():
        with TokenFileWriter(folder / split, vocab_size=args.vocab) as writer:
            writer.add_document(np.random.default_rng(0).integers(2, args.vocab, (count + 1) * args.context))
    write_tokenizer(folder, args.vocab)
    batch = args.sequences * args.context
    facts = {key: getattr(args, key) for key in ("vocab", "context", "layers", "width", "heads", "precision")}
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder, batch=batch, total=args.steps * batch, **facts), encoding="utf-8")
    return recipe


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of random words: the recipe names one, and its size is the model's."""
    import io

    import sentencepiece

    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(6 * vocab_size)]
    sentences = (" ".join(words[i : i + 12]) for i in range(0, len(words), 12))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def overrides_of(settings: dict[str, Any], size: int) -> list[str]:
    words = ["--batch.micro_batch_size", str(size)]
    for key, value in settings.items():
        words += [f"--parallel.{key}", str(value)]
    return words


def ranks_of(settings: dict[str, Any]) -> int:
    return math.prod(int(settings.get(axis, 1)) for axis in ("tensor", "pipeline", "data"))


def predict(recipe: Path, settings: dict[str, Any], size: int, profile: MachineProfile) -> StepTime:
    """The prediction that `triaxial plan RECIPE --layout --calibrate PROFILE` gives."""
    config = read_run_config(str(recipe), overrides_of(settings, size))
    request = request_of(config, profile, ranks=ranks_of(settings))
    found = given_layout(config, request, ranks_of(settings))
    return step_time(found.job, request.cluster, request.stack)


def request_of(config: RunConfig, profile: MachineProfile, *, ranks: int) -> PlanRequest:
    stack = replace(read_hardware().stacks["triaxial"], name="measured")
    cluster = machine_cluster(profile, None, ranks=ranks)
    return PlanRequest(config.model, config.batch, config.data.seq_len, config.parallel, cluster, stack)


def run_layout(recipe: Path, directory: Path, settings: dict[str, Any], size: int) -> list[float]:
    """Seconds of a run's steps without the first ones."""
    words = [sys.executable, "-m", "launch.main", "train", str(recipe), "--run.directory", str(directory)]
    words += [*overrides_of(settings, size), "--nproc", str(ranks_of(settings))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise ConfigError(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    rows = [decode_json(line) for line in (directory / "metrics.jsonl").read_bytes().splitlines()]
    return [float(row["step_s"]) for row in rows if "loss" in row][FIRST_STEPS:]


def spread_of(spans: Sequence[float]) -> float:
    low, middle, high = statistics.quantiles(spans, n=4)
    return (high - low) / middle


def kendall_tau(outcomes: Sequence[Outcome], *, apart: float) -> tuple[float, int]:
    """Kendall's tau and the number of pairs whose measured times differ by at least `apart`."""
    agree = []
    for a, b in itertools.combinations(outcomes, 2):
        if abs(math.log(a.measured / b.measured)) >= apart:
            same = (a.measured < b.measured) == (a.predicted.seconds < b.predicted.seconds)
            agree.append(1 if same else -1)
    return (sum(agree) / len(agree) if agree else 0.0), len(agree)


def report(
    args: argparse.Namespace, profile: MachineProfile, outcomes: Sequence[Outcome], *, minutes: float
) -> list[str]:
    found = summary_of(outcomes)
    now = datetime.now(UTC).isoformat(timespec="minutes")
    machine = profile.machine
    runs = len(outcomes[0].steps) // (args.steps - FIRST_STEPS)  # fewer than --rounds if --minutes were over
    lines = [
        f"{now}, {machine.cpu}, {machine.cores} cores, {machine.instructions}, torch {machine.torch}, "
        f"{args.precision}. Model: {args.layers} blocks of {args.width}, vocabulary {args.vocab}, {args.sequences} "
        f"sequences of {args.context} tokens a step; {runs} runs of {args.steps} steps a layout; {minutes:.1f} "
        f"minutes.",
        "",
        "| layout | predicted s | measured s | error | spread of the steps |",
        "|---|---|---|---|---|",
    ]
    for each in outcomes:
        times = f"{each.predicted.seconds:.3f} | {each.measured:.3f} | {each.error:+.1%} | {each.spread:.1%}"
        lines.append(f"| {each.name} | {times} |")
    (tau, pairs), (clear, clear_pairs) = (kendall_tau(outcomes, apart=apart) for apart in (0.0, 0.03))
    lines += [
        "",
        f"Absolute error: median {found.median:.1%}, 90th percentile {found.p90:.1%}. Kendall's tau {tau:.2f} over "
        f"{pairs} pairs, {clear:.2f} over the {clear_pairs} that differ by at least 3%. A spread of "
        f"{covering_spread([each.error for each in outcomes]):.3f} covers 90% of the layouts.",
    ]
    lines += ["", *parts_table(outcomes), "", *summary(profile)]
    return lines


def parts_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Predicted milliseconds of each part, and what measurement adds to or takes from their sum."""
    names = [name for name in outcomes[0].predicted.parts if any(each.predicted.parts[name] for each in outcomes)]
    lines = [
        f"| predicted ms | {' | '.join(names)} | sum | measured - sum |",
        f"|---|{'---|' * (len(names) + 2)}",
    ]
    for each in outcomes:
        parts = " | ".join(f"{1e3 * each.predicted.parts[name]:.0f}" for name in names)
        rest = each.measured - each.predicted.seconds
        lines.append(f"| {each.name} | {parts} | {1e3 * each.predicted.seconds:.0f} | {1e3 * rest:+.0f} |")
    return lines


def summary_of(outcomes: Sequence[Outcome]) -> ErrorSummary:
    return error_summary([each.error for each in outcomes])


def as_json(profile: MachineProfile, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = summary_of(outcomes)
    return {
        "benchmark": "planner_here",
        "median_error": found.median,
        "p90_error": found.p90,
        "covering_spread": covering_spread([each.error for each in outcomes]),
        "kendall_tau": kendall_tau(outcomes, apart=0.0)[0],
        "kendall_tau_apart": kendall_tau(outcomes, apart=0.03)[0],
        "layouts": [
            {
                "name": each.name,
                "predicted_s": each.predicted.seconds,
                "measured_s": each.measured,
                "error": each.error,
                "spread": each.spread,
                "parts_s": each.predicted.parts,
                "steps_s": [round(seconds, 4) for seconds in each.steps],
            }
            for each in outcomes
        ],
        "profile_s": profile.elapsed_s,
        "spread": {str(each.ranks): each.spread for each in profile.by_ranks},
        "waiting": {str(each.ranks): each.waiting for each in profile.by_ranks},
        "machine": json.loads(json.dumps(vars(profile.machine))),
    }


if __name__ == "__main__":
    sys.exit(main())
