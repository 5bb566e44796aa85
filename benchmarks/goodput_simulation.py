"""Goodput of a simulated run of 54 days on 16,384 GPUs with Llama 3's rate of faults, for several checkpoint intervals.

    python benchmarks/goodput_simulation.py [--interval-s 300 900 3600] [--resume FILE | --ledger FILE] [--json FILE]

Faults strike at any time, start-up included. Each costs its detection, a new start (`restart_s`, `load_s`,
`first_step_s`) and the steps since the newest checkpoint that was whole; each save holds training up for `stall_s` and
is whole `write_s` after it began. What a fault costs is an input: the result of benchmarks/resume_time.py (--resume),
a run's ledger.jsonl (--ledger), or set. The last line printed is one JSON object.
docs/results/reliability/goodput.md has the figures.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import side_by_side
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from gpt.errors import ConfigError
from gpt.telemetry.goodput import read_account, read_rows

# The Llama 3 Herd of Models (arXiv 2407.21783), section 3.3.4, table 5: 419 unexpected interruptions in a 54-day
# snapshot on 16,384 H100; the paper reports over 90% effective training time.
GPUS, DAYS, FAULTS = 16_384, 54.0, 419
# "Time between failures is modeled well by a Weibull distribution with decreasing hazard rate" (Schroeder and Gibson,
# DSN 2006, on 23,000 failures at Los Alamos); the shape is the lower end of the 0.7 to 0.8 that they fit.
CLUSTERED_SHAPE = 0.7
LOADING = ("verifying", "building", "loading")  # parts of a start-up, as the ledger of time calls them


@dataclass(frozen=True)
class Phases:
    """What one fault and one save cost, in seconds."""

    detect_s: float  # from the fault until the job has ended
    restart_s: float  # until the new processes have joined: launching, imports, checking, joining
    load_s: float  # verifying and loading the checkpoint, building the model
    first_step_s: float
    stall_s: float  # how long training stands still for a save
    write_s: float  # from the start of a save until its checkpoint is whole; never less than the stall

    @property
    def recovery_s(self) -> float:
        return self.detect_s + self.restart_s + self.load_s + self.first_step_s


@dataclass(frozen=True)
class Faults:
    """How often faults strike: seconds between two, on average, and the Weibull shape (1: exponential)."""

    mean_s: float
    shape: float = 1.0

    def gaps(self, generator: np.random.Generator, horizon_s: float) -> NDArray[np.float64]:
        """Seconds between faults, from the start of the run until one is past the horizon."""
        scale = self.mean_s / math.gamma(1 + 1 / self.shape)
        gaps: list[NDArray[np.float64]] = []
        total = 0.0
        while total <= horizon_s:
            gaps.append(scale * generator.weibull(self.shape, size=64))
            total += float(gaps[-1].sum())
        joined = np.concatenate(gaps)
        return joined[: int(np.searchsorted(np.cumsum(joined), horizon_s, side="right")) + 1]


# "measured": medians of 5 restarts of a 124M model on two processes, and its saves in the background, on an otherwise
# idle machine of 2 cores, 2026-11-27, by benchmarks/resume_time.py; --resume takes what its --json wrote elsewhere.
# Detection: twice the default hang timeout, the bound that is promised. "at scale": what MegaScale
# reports of 12,288 GPUs (arXiv 2402.15627, section 4): found within 10 minutes, caught up within 15, and a save that
# holds training up for tens of seconds where it is synchronous.
PRESETS = {
    "measured": Phases(detect_s=600.0, restart_s=7.3, load_s=1.8, first_step_s=3.5, stall_s=0.12, write_s=4.1),
    "at scale": Phases(detect_s=600.0, restart_s=600.0, load_s=240.0, first_step_s=60.0, stall_s=10.0, write_s=120.0),
}


def goodput(
    phases: Phases, faults: Faults, *, interval_s: float, horizon_s: float, generator: np.random.Generator
) -> float:
    """Training that counted as a share of one simulated run. `interval_s`: training between two saves.

    Between two faults all is determined, so no step is simulated by itself.
    """
    gaps = faults.gaps(generator, horizon_s)
    gaps[-1] -= gaps.sum() - horizon_s  # the last stretch ends with the run, not with a fault
    run_s = np.maximum(gaps - phases.recovery_s, 0.0)
    run_s[0] = gaps[0]  # the first start is none that a fault costs
    cycle_s = interval_s + phases.stall_s
    # save k begins at k intervals and k - 1 stalls, and counts if it is whole before the fault
    whole = np.maximum(np.floor((run_s + phases.stall_s - phases.write_s) / cycle_s), 0.0)
    useful_s = whole * interval_s
    in_cycle_s = run_s[-1] % cycle_s
    useful_s[-1] = run_s[-1] // cycle_s * interval_s + min(in_cycle_s, interval_s)
    return float(useful_s.sum() / horizon_s)


def daly_goodput(phases: Phases, faults: Faults, interval_s: float) -> float:
    """What Daly's complete model expects (FGCS 22, 2006, eq. 20): exponential faults and a save that is whole when
    training goes on. T_s / T_w = tau / (M e^(R/M) (e^((tau + delta)/M) - 1))."""
    mean_s = faults.mean_s
    return (
        interval_s
        / mean_s
        / (math.exp(phases.recovery_s / mean_s) * math.expm1((interval_s + phases.stall_s) / mean_s))
    )


def young_interval_s(stall_s: float, mean_s: float) -> float:
    """sqrt(2 delta M) (Young, CACM 1974)."""
    return math.sqrt(2 * stall_s * mean_s)


def daly_interval_s(stall_s: float, mean_s: float) -> float:
    """Daly's higher-order optimum (FGCS 22, 2006, eq. 37)."""
    if stall_s >= 2 * mean_s:
        return mean_s
    ratio = stall_s / (2 * mean_s)
    return math.sqrt(2 * stall_s * mean_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def simulate(phases: Phases, faults: Faults, *, interval_s: float, horizon_s: float, seeds: int) -> NDArray[np.float64]:
    """The goodput of each seed."""
    return np.array(
        [
            goodput(phases, faults, interval_s=interval_s, horizon_s=horizon_s, generator=np.random.default_rng(seed))
            for seed in range(seeds)
        ]
    )


def phases_of_benchmark(path: Path, base: Phases) -> Phases:
    """What benchmarks/resume_time.py wrote with --json; detection, of which it knows nothing, as in `base`."""
    try:
        found = json.loads(path.read_text())
        parts, save = found["ours"]["phases_s"], found["save"]
        stall_s, write_s = float(save["stall_s"]), float(save["write_s"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--resume {path}: not what resume_time.py --json writes") from None
    load_s = sum(parts.get(part, 0.0) for part in LOADING)
    return Phases(
        detect_s=base.detect_s,
        restart_s=sum(parts.values()) - load_s - parts["first step"],
        load_s=load_s,
        first_step_s=parts["first step"],
        stall_s=stall_s,
        write_s=stall_s + write_s,
    )


def phases_of_ledger(path: Path, base: Phases) -> Phases:
    """Where a run's ledger knows a phase, its median; else as in `base`. A restart is what was down between processes
    and their start-up but for loading, so detection is in it and counts 0."""
    account = read_account(path)
    if account is None:
        raise ConfigError(f"--ledger {path}: no whole row in it; name the ledger.jsonl of a run")
    started = [process for process in account.processes if process.first_step_s is not None]
    restarted = [process for process in started if process is not account.processes[0]]
    if not restarted:
        raise ConfigError(f"--ledger {path}: the run was never restarted, so it does not tell what a restart costs")
    load_s = median(sum(process.start_up.get(part, 0.0) for part in LOADING) for process in restarted)
    starts_s = median(process.down_s + sum(process.start_up.values()) for process in restarted)
    saving = [row["seconds"].get("saving", 0.0) for row in read_rows(path)]
    stalls = [after - before for before, after in pairwise(saving) if after > before]
    return replace(
        base,
        detect_s=0.0,
        restart_s=starts_s - load_s,
        load_s=load_s,
        first_step_s=median(process.first_step_s for process in restarted if process.first_step_s is not None),
        **({"stall_s": median(stalls), "write_s": max(base.write_s, median(stalls))} if stalls else {}),
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    phases = chosen_phases(args)
    mean_s = args.days * 86_400 / args.faults
    young, daly = young_interval_s(phases.stall_s, mean_s), daly_interval_s(phases.stall_s, mean_s)
    intervals = {f"{s:g} s": s for s in args.interval_s} | {"Young": young, "Daly": daly}
    results = []
    for law, shape in (("exponential", 1.0), ("clustered", CLUSTERED_SHAPE)):
        faults = Faults(mean_s, shape)
        for name, interval_s in intervals.items():
            # a save cannot begin before the one before it is whole
            used_s = max(interval_s, phases.write_s - phases.stall_s)
            found = simulate(phases, faults, interval_s=used_s, horizon_s=args.days * 86_400, seeds=args.seeds)
            results.append(
                {
                    "faults": law,
                    "interval": name,
                    "interval_s": used_s,
                    "goodput": float(found.mean()),
                    "spread": float(found.std(ddof=1)),
                    "least": float(found.min()),
                    "greatest": float(found.max()),
                    "daly_goodput": daly_goodput(phases, faults, used_s) if shape == 1.0 else None,
                }
            )
    show(results, phases, mean_s=mean_s, seeds=args.seeds)
    return {
        "benchmark": "goodput_simulation",
        "gpus": GPUS,
        "days": args.days,
        "expected_faults": args.faults,
        "mean_between_faults_s": mean_s,
        "seeds": args.seeds,
        "phases": asdict(phases),
        "recovery_s": phases.recovery_s,
        "best_interval_s": {"young": young, "daly": daly},
        "results": results,
    }


def show(results: list[dict[str, Any]], phases: Phases, *, mean_s: float, seeds: int) -> None:
    console = Console(width=120)
    told = ", ".join(f"{name.removesuffix('_s')} {value:.1f}" for name, value in asdict(phases).items())
    console.print(f"seconds: {told}; a fault every {mean_s:,.0f} s on average; {seeds} seeds")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("faults", "interval", "seconds", "goodput", "spread", "least", "greatest", "Daly's formula"):
        table.add_column(name, justify="left" if name in ("faults", "interval") else "right")
    for row in results:
        formula = "" if row["daly_goodput"] is None else f"{row['daly_goodput']:.2%}"
        shares = [f"{row[key]:.2%}" for key in ("goodput", "spread", "least", "greatest")]
        table.add_row(row["faults"], row["interval"], f"{row['interval_s']:,.0f}", *shares, formula)
    console.print(table)


def chosen_phases(args: argparse.Namespace) -> Phases:
    phases = PRESETS[args.phases]
    if args.ledger is not None:
        phases = phases_of_ledger(args.ledger, phases)
    if args.resume is not None:
        phases = phases_of_benchmark(args.resume, phases)
    given = {name: getattr(args, name) for name in asdict(phases) if getattr(args, name) is not None}
    phases = replace(phases, **given)
    for name, value in asdict(phases).items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be a number of seconds, 0 or more")
    if phases.write_s < phases.stall_s or phases.stall_s == 0:
        raise ConfigError(f"--write-s {phases.write_s} must be at least --stall-s {phases.stall_s}, and that above 0")
    return phases


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", choices=PRESETS, default="measured", help="what a fault and a save cost")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--resume", type=Path, help="take what resume_time.py --json wrote")
    source.add_argument("--ledger", type=Path, help="take what a restarted run's ledger.jsonl knows of them")
    for name, value in asdict(PRESETS["measured"]).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"instead (measured: {value:g})")
    parser.add_argument("--interval-s", type=float, nargs="+", default=[300.0, 900.0, 3600.0], metavar="S")
    parser.add_argument("--faults", type=int, default=FAULTS, help="expected over all days")
    parser.add_argument("--days", type=float, default=DAYS)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


if __name__ == "__main__":
    raise SystemExit(main())
