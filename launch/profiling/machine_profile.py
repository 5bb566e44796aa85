"""The profile of this machine: measure it, keep it, read it, and check that it holds here."""

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from gpt.errors import ConfigError
from launch.processes.environment import shown_settings
from launch.processes.machine_facts import cpu_name, load_here, load_warning
from launch.profiling.profile_ranks import PartsDone, joined, measure_ranks, parts_of
from launch.reports.written import check_destination
from parallel.planner.hardware.tables import Cluster, Gpu, Network
from parallel.planner.machine.measured_step import measured_machine
from parallel.planner.machine.profile import (
    MachineIdentity,
    MachineProfile,
    RanksTables,
    difference,
    read_profile,
    write_profile,
)

MAX_RANKS = 8  # measured without being asked
BUSY_SPREAD, BUSY_WAITING = 0.15, 0.10
SPREAD = 0.076  # of log(measured / predicted): covers 90% of the 12 layouts in docs/results/training/planner.md


def identity_here() -> MachineIdentity:
    """The facts of this machine that a profile depends on."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return MachineIdentity(
        cpu_name(),
        torch.backends.cpu.get_cpu_capability(),
        cores_here(),
        torch.__version__,
        torch.cuda.get_device_name(0) if gpus else "",
        gpus,
    )


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_here(ranks: int) -> int:
    """The threads that the launcher gives each of `ranks` local ranks."""
    named = shown_settings().get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() else max(1, cores_here() // ranks)


def kept_at(machine: MachineIdentity) -> Path:
    """The file that keeps the profile of a machine: its name is a digest of the machine's facts."""
    base = Path(shown_settings().get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(repr(dataclasses.astuple(machine)).encode()).hexdigest()[:16]
    return base / "triaxial" / "profiles" / f"{digest}.json"


def measure(
    output: Path | None, *, ranks: Sequence[int] | None, precisions: Sequence[str]
) -> tuple[Path, MachineProfile]:
    """Measure this machine and write its profile, to the file where it is kept if `output` is None.

    ConfigError: a number of ranks is invalid, a rank fails, or the file cannot be written.
    """
    machine = identity_here()
    path = output if output is not None else kept_at(machine)
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    check_destination("--output", path)
    started_at = time.perf_counter()
    counts = usual_ranks(machine) if ranks is None else tuple(dict.fromkeys(ranks))
    for count in counts:
        most = machine.gpus or 8 * machine.cores
        if not 1 <= count <= most or count & (count - 1):
            usual = " ".join(map(str, usual_ranks(machine)))
            raise ConfigError(
                f"--ranks {count} is invalid: must be a power of two from 1 to {most}. Use --ranks {usual}"
            )
    if busy := load_warning(load_here(), machine.cores, most=0.5):
        text = f"warning: {busy}: this takes longer, and the profile is that of a busy machine. Ctrl-C ends it"
        print(text, file=sys.stderr, flush=True)
    try:
        tables = _two_turns(counts, precisions, machine.cores)
    except KeyboardInterrupt:
        print("interrupted: no profile is written", file=sys.stderr)
        raise
    memory = _memory_bytes(machine)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    profile = MachineProfile(machine, now, time.perf_counter() - started_at, memory, tables)
    write_profile(path, profile)
    return path, profile


def _two_turns(counts: Sequence[int], precisions: Sequence[str], cores: int) -> tuple[RanksTables, ...]:
    """The tables of each number of ranks.

    The speed of a shared host drifts by a few percent within minutes. Steps of all numbers of ranks are therefore
    measured twice, one number after the other, such that the drift is not taken for a cost of some layouts.
    """
    turns = [(count, again) for again in (False, True) for count in counts]
    sizes = [sum(parts_of(count, precisions, again=again)) for count, again in turns]
    parts, found = PartsDone(0, sum(sizes), time.time()), list[RanksTables]()
    for (count, again), size in zip(turns, sizes, strict=True):
        found.append(measure_ranks(count, precisions, cores=cores, parts=parts, again=again))
        parts = parts.after(size)
    return tuple(joined(*both) for both in zip(found[: len(counts)], found[len(counts) :], strict=True))


def usual_ranks(machine: MachineIdentity) -> tuple[int, ...]:
    """1, 2, 4 ... ranks: up to the GPUs, or the cores of a machine without one, and at most MAX_RANKS."""
    most = min(machine.gpus or machine.cores, MAX_RANKS)
    return tuple(2**i for i in range(most.bit_length()) if 2**i <= most)


def profile_for_here(path: Path | None) -> MachineProfile:
    """Read a profile, or with None the one that is kept for this machine, and check that it holds here.

    ConfigError: there is none, or it is of another machine, version or number of threads; it names the difference.
    """
    machine = identity_here()
    file = kept_at(machine) if path is None else path
    option = f"--here with {file}" if path is None else f"--calibrate {file}"
    if path is None and not file.exists():
        raise ConfigError(
            f"--here: no profile of this machine is kept at {file}. Measure it: triaxial doctor --measure"
        )
    profile = read_profile(file)
    if found := difference(profile.machine, machine):
        raise ConfigError(
            f"{option} is invalid: it is the profile of another machine: {found}. Measure this one: triaxial "
            f"doctor --measure"
        )
    for tables in profile.by_ranks:
        if not machine.gpus and tables.threads != threads_here(tables.ranks):
            raise ConfigError(
                f"{option} is invalid: its {tables.ranks} ranks had {tables.threads} threads each, "
                f"not {threads_here(tables.ranks)} as in training here. Set OMP_NUM_THREADS as it was then, or measure "
                f"again: triaxial doctor --measure"
            )
    return profile


def machine_cluster(profile: MachineProfile, known: Gpu | None, *, ranks: int) -> Cluster:
    """This machine as one node of `ranks` devices. `known`: its GPU in the tables; without, one is made of the profile.

    A CPU's devices are equal shares of its cores and memory, and their peak is their fastest measured product.
    """
    tables = next((each for each in profile.by_ranks if each.ranks == ranks), profile.by_ranks[0])
    best = max(2 * row.m * row.n * row.k / row.seconds for row in tables.products) / 1e12
    made = Gpu(
        profile.machine.gpu or profile.machine.cpu,
        peak=best,
        best=1.0,
        attention=1.0,
        memory_gib=profile.memory_bytes / 2**30 / (1 if profile.machine.gpus else ranks),
        memory_gb_per_s=memory_bandwidth(tables) / 1e9,
        link_gb_per_s=max([bus_bandwidth(tables) / 1e9, 1e-3]),
        network="this machine",
    )
    network = Network("this machine", made.link_gb_per_s, max(each.ranks for each in profile.by_ranks), 1.0)
    return Cluster(known or made, network, network.node, measured_machine(profile))


def memory_bandwidth(tables: RanksTables) -> float:
    """Bytes/s of one rank's largest copy from fp32 to the computation's type."""
    row = max((each for each in tables.elementwise if each.kind == "copy"), key=lambda each: each.elements)
    return row.elements * (4 + (2 if row.precision == "bf16" else 4)) / row.forward


def bus_bandwidth(tables: RanksTables) -> float:
    """Bytes/s of the largest all-gather as a rank receives them; 0 for one rank."""
    rows = [each for each in tables.collectives if each.kind == "all_gather"]
    if not rows:
        return 0.0
    row = max(rows, key=lambda each: each.bytes)
    return row.bytes * (row.ranks - 1) / row.ranks / row.seconds


def summary(profile: MachineProfile) -> list[str]:
    """The profile in a few lines, with a warning if the machine was busy."""
    machine, lines = profile.machine, list[str]()
    device = f"{machine.gpus} x {machine.gpu}" if machine.gpus else f"{machine.cpu}, {machine.cores} cores"
    lines.append(f"{device}, {machine.instructions}, torch {machine.torch}: measured in {profile.elapsed_s:.0f} s")
    for tables in profile.by_ranks:
        words = [f"{tables.ranks} x {tables.threads} threads"]
        for precision in dict.fromkeys(row.precision for row in tables.products):
            best = max(2 * r.m * r.n * r.k / r.seconds for r in tables.products if r.precision == precision)
            words.append(f"products up to {best / 1e9:,.0f} GFLOP/s in {precision}")
        words.append(f"memory {memory_bandwidth(tables) / 1e9:.1f} GB/s a rank")
        least = min(row.forward for row in tables.elementwise if row.kind == "add")
        words.append(f"a small kernel {least * 1e6:.1f} us")
        if bandwidth := bus_bandwidth(tables):
            words.append(f"all-gather {bandwidth / 1e9:.2f} GB/s")
        lines.append(", ".join(words) + f", spread {tables.spread:.0%}")
        if tables.spread > BUSY_SPREAD or tables.waiting > BUSY_WAITING:
            lines.append(
                f"warning: the machine was busy with {tables.ranks} ranks: spread {tables.spread:.0%}, no core for "
                f"{tables.waiting:.0%} of the time. Measure again when it is idle"
            )
    return lines


def _memory_bytes(machine: MachineIdentity) -> int:
    if machine.gpus:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
