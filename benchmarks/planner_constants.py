"""Find the constants of the planner's time model from the published runs, and its error on sources left out.

    python benchmarks/planner_constants.py [--leave-out]

The search changes one constant at a time by up to 6% and keeps what lowers the mean absolute log error, where an
error counts at most 0.35: a few rows contradict the others. A constant away from its start value costs a little, so
that no single row moves it. `--leave-out` repeats the search without each source and shows the error on that source;
a stack that only that source shows then has overhead 1.
"""

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

from parallel.planner import published
from parallel.planner.choice.ranking import EAGER
from parallel.planner.hardware import tables
from parallel.planner.hardware.tables import Stack, read_hardware
from parallel.planner.published.rows import PublishedRun, published_runs, read_rows
from parallel.planner.step_time import kernels
from parallel.planner.step_time.step import step_time

START = {
    "sustained": tables.SUSTAINED,
    "memory": kernels.MEMORY_SHARE,
    "attention A100": read_hardware().gpus["A100-80G"].attention,
    "attention H100": read_hardware().gpus["H100"].attention,
    "tensor": Stack.tensor,
    "tensor overlapped": Stack.tensor_overlapped,
    "unfused bytes": float(kernels.UNFUSED_BYTES),
}
STACKS = ("megatron-2021", "megatron-core", "mlperf", "nemo", "torchtitan", "llm-foundry")


def predicted(run: PublishedRun, constants: dict[str, float]) -> float:
    """Seconds of a run whose settings are fixed, with these constants."""
    tables.SUSTAINED, kernels.MEMORY_SHARE = constants["sustained"], constants["memory"]
    kernels.UNFUSED_BYTES = constants["unfused bytes"]
    gpu = run.cluster.gpu
    old = gpu.name.startswith("A100")
    gpu = replace(gpu, attention=constants["attention A100" if old else "attention H100"])
    overhead = constants.get(run.stack.name.removesuffix("-eager"), 1.0) * (EAGER if "eager" in run.stack.name else 1.0)
    shares = {"tensor": constants["tensor"], "tensor_overlapped": constants["tensor overlapped"]}
    stack = replace(run.stack, overhead=overhead, **shares)
    return step_time(run.jobs[0], replace(run.cluster, gpu=gpu), stack).seconds


def loss(runs: list[PublishedRun], constants: dict[str, float], start: dict[str, float]) -> float:
    errors = [min(0.35, abs(math.log(predicted(run, constants) / run.seconds))) for run in runs]
    return statistics.mean(errors) + 0.1 * sum(math.log(constants[k] / start[k]) ** 2 for k in constants)


def fit(runs: list[PublishedRun]) -> dict[str, float]:
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leave-out", action="store_true")
    args = parser.parse_args()
    rows = read_rows(Path(published.__file__).parent / "runs.csv")
    runs = [replace(run, jobs=(run.fastest(run.stack)[0],)) for run in published_runs(rows, read_hardware())[0]]
    result = {"all": {key: round(value, 3) for key, value in fit(runs).items()}}
    print(result, flush=True)
    for source in dict.fromkeys(run.source for run in runs) if args.leave_out else ():
        constants = fit([run for run in runs if run.source != source])
        own = [run for run in runs if run.source == source]
        errors = sorted(abs(predicted(run, constants) / run.seconds - 1) for run in own)
        result[source] = {"rows": len(own), "median": round(statistics.median(errors), 3), "max": round(errors[-1], 3)}
        print(source, result[source], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
