"""Find the constants of the planner's time model from the published runs, and its error on sources left out.

    python benchmarks/planner_constants.py [--leave-out]

The search changes one constant at a time by up to 6% and keeps what lowers the mean absolute log error, where an
error counts at most 0.35: a few rows contradict the others. All rows of a source together count as at most 8 rows. Of
`llm_foundry.csv` the search sees every sixth row; the others stay unseen. A constant away from its start value costs a
little, so that no single row moves it. `--leave-out` repeats the search without each source and shows the error on that
source; a stack that only that source shows then has overhead 1.
"""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parallel.planner import published
from parallel.planner.choice.ranking import EAGER
from parallel.planner.hardware import tables
from parallel.planner.hardware.tables import Stack, read_hardware
from parallel.planner.published.rows import PublishedRun, published_runs, read_rows
from parallel.planner.step_time import kernels

HARDWARE = read_hardware()
START = {
    "sustained A100": HARDWARE.gpus["A100-80G"].sustained,
    "sustained": tables.SUSTAINED,
    "memory": kernels.MEMORY_SHARE,
    "attention A100": HARDWARE.gpus["A100-80G"].attention,
    "attention H100": HARDWARE.gpus["H100"].attention,
    "attention llm-foundry": HARDWARE.stacks["llm-foundry"].attention_speed,
    "tensor": Stack.tensor,
    "tensor overlapped": Stack.tensor_overlapped,
    "fused accumulation": HARDWARE.stacks["nemo"].accumulate_bytes,
    "unfused bytes": float(kernels.UNFUSED_BYTES),
}
STACKS = ("megatron-2021", "megatron-core", "megatron-bridge", "mlperf", "nemo", "torchtitan", "llm-foundry")
EVERY = 6  # the search sees one of so many rows of llm_foundry.csv
MAX_ROWS = 8  # that a source counts as


def predicted(run: PublishedRun, constants: dict[str, float]) -> float:
    """Seconds of a run whose settings are fixed, with these constants."""
    kernels.MEMORY_SHARE, kernels.UNFUSED_BYTES = constants["memory"], constants["unfused bytes"]
    gpu, stack = run.cluster.gpu, run.stack
    chip = " A100" if gpu.name.startswith("A100") else ""
    gpu = replace(gpu, sustained=constants[f"sustained{chip}"], attention=constants[f"attention{chip or ' H100'}"])
    overhead = constants.get(stack.name.removesuffix("-eager"), 1.0) * (EAGER if "eager" in stack.name else 1.0)
    own = {"tensor": 1.0} if stack.name.startswith("kempnerforge") else {"tensor": constants["tensor"]}
    own |= {"tensor_overlapped": constants["tensor overlapped"]}
    if stack.overlap_tensor:
        own |= {"accumulate_bytes": constants["fused accumulation"]}
    if stack.name == "llm-foundry":
        own |= {"attention_speed": constants["attention llm-foundry"]}
    stack = replace(stack, overhead=overhead, **own)
    return replace(run, cluster=replace(run.cluster, gpu=gpu)).fastest(stack)[1]


def loss(runs: Sequence[PublishedRun], constants: dict[str, float], start: dict[str, float]) -> float:
    rows = Counter(run.source for run in runs)
    weights = [min(1.0, MAX_ROWS / rows[run.source]) for run in runs]
    errors = [min(0.35, abs(math.log(predicted(run, constants) / run.seconds))) for run in runs]
    mean = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    return mean + 0.1 * sum(math.log(constants[k] / start[k]) ** 2 for k in constants)


def fit(runs: Sequence[PublishedRun]) -> dict[str, float]:
    """The constants with the lowest loss, by coordinate search from the start values."""
    start = {**START, **{name: 1.0 for name in STACKS if any(run.stack.name.startswith(name) for run in runs)}}
    best, lowest, step = start, loss(runs, start, start), 0.06
    while step > 0.02:
        moved = False
        for key in start:
            for factor in (1 + step, 1 / (1 + step)):
                tried = {**best, key: best[key] * factor}
                if (found := loss(runs, tried, start)) < lowest - 1e-6:
                    best, lowest, moved = tried, found, True
        step = step if moved else step / 2
    return best


def runs_of(name: str) -> list[PublishedRun]:
    """The runs of a shipped file, with the settings that they leave open fixed."""
    rows = read_rows(Path(published.__file__).parent / name)
    found = published_runs(rows, HARDWARE)[0]
    return [replace(run, jobs=tuple(job for job, _ in run.readings(run.stack))) for run in found]


def errors_of(runs: Sequence[PublishedRun], constants: dict[str, float]) -> dict[str, object]:
    signed = [predicted(run, constants) / run.seconds - 1 for run in runs]
    errors = sorted(map(abs, signed))
    p90 = errors[math.ceil(0.9 * len(errors)) - 1]
    figures = {"rows": len(errors), "median": round(statistics.median(errors), 3), "p90": round(p90, 3)}
    return {**figures, "logs": [round(math.log(1 + error), 3) for error in signed]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leave-out", action="store_true")
    args = parser.parse_args()
    more = runs_of("llm_foundry.csv")
    runs = runs_of("runs.csv") + more[::EVERY]
    constants = fit(runs)
    result: dict[str, object] = {"all": {key: round(value, 3) for key, value in constants.items()}}
    result["unseen rows of llm-foundry"] = errors_of([r for i, r in enumerate(more) if i % EVERY], constants)
    print(result, flush=True)
    for source in dict.fromkeys(run.source for run in runs) if args.leave_out else ():
        constants = fit([run for run in runs if run.source != source])
        result[source] = errors_of([run for run in runs if run.source == source], constants)
        print(source, result[source], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
