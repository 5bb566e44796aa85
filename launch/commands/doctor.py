"""`triaxial doctor`: show what this machine offers and what would break a run. Changes nothing.

With `--nodes` the nodes of a job then check each other: an all-reduce over all ranks, and who is at fault if it fails.
Else it uses no network.
"""

import argparse
import dataclasses
import importlib.util
import socket
import sys
from pathlib import Path

from gpt.errors import ConfigError, install_command
from launch.engines.installed import EngineFacts
from launch.preflight.links import SLOWED
from launch.preflight.nodes import Check, check_nodes
from launch.processes.environment import LauncherEnvironment
from launch.processes.machine_facts import N_PARTS, Facts, collect, load_warning
from launch.processes.sealing import shared_secret
from launch.reports.written import add_json_option, json_destination

GIB = 2**30
FOR_DEVELOPERS = ("dev", "benchmarks", "plots")  # extras that no user needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_json_option(parser, "the facts, warnings and problems (with --measure: the profile)", was_switch=True)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="instead: time this machine's kernels, messages and small steps, for plan",
    )
    parser.add_argument(
        "--output", type=Path, metavar="PROFILE", help="write the profile here (default: where plan --here finds it)"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        metavar="N",
        help="processes that work at once (default: 1, 2, 4 ... up to the cores)",
    )
    parser.add_argument(
        "--precision", nargs="+", choices=("bf16", "fp32"), default=None, help="types to measure (default: bf16)"
    )
    together = parser.add_argument_group(
        "check nodes together", "start it on every node at the same time, as slurm/train.sbatch does"
    )
    together.add_argument("--nodes", metavar="N_OR_NAMES", help="the nodes of the job: their number, or name,name,...")
    together.add_argument(
        "--nproc-per-node", type=int, metavar="N", help="ranks on each node (default: its GPUs, or 1)"
    )
    together.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet, the same on every node")
    together.add_argument(
        "--limit-s", type=float, default=60.0, metavar="S", help="time limit of the arrival, and of each all-reduce"
    )
    together.add_argument(
        "--bad-nodes", type=Path, metavar="FILE", help="append nodes at fault to FILE, with the reason"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 0, 1 if training cannot run here at all, or 3 if the nodes cannot train together."""
    if args.measure:
        return measure_machine(args)
    for option in ("output", "ranks", "precision"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} is an option of --measure. Add --measure or leave --{option} out")
    check = check_of(args)
    with json_destination(args.json) as emit:
        facts = collected()
        problems, warnings = problems_of(facts), warnings_of(facts)
        node = LauncherEnvironment.from_environment().node_name or socket.gethostname()
        label = f"node {node}: " if check is not None and check.count > 1 else ""
        show(facts, warnings=warnings, problems=problems, label=label)
        emit({"facts": dataclasses.asdict(facts), "warnings": warnings, "problems": problems})
    if problems or check is None:
        return 1 if problems else 0
    sys.stdout.flush()
    return check_nodes(dataclasses.replace(check, nproc_per_node=args.nproc_per_node or len(facts.gpus) or 1))


def collected() -> Facts:
    if importlib.util.find_spec("rich") is None:  # it may be the missing package
        return collect()
    from launch.processes.terminal import work_progress

    with work_progress() as progress:
        progress.start("looking at this machine", total=N_PARTS)
        return collect(advance=progress.advance)


def check_of(args: argparse.Namespace) -> Check | None:
    """The check of all nodes that the arguments ask for. ConfigError: an option is wrong."""
    if args.nodes is None:
        given = [name for name in ("nproc_per_node", "rdzv_endpoint", "bad_nodes") if getattr(args, name) is not None]
        if given:
            option = given[0].replace("_", "-")
            raise ConfigError(f"--{option} is only for a check of several nodes. Add --nodes N, or leave it out")
        return None
    nproc = args.nproc_per_node if args.nproc_per_node is not None else 1
    check = Check(args.nodes, args.rdzv_endpoint, nproc, args.limit_s, args.bad_nodes)
    if check.count > 1:
        shared_secret()  # before the facts of this node, which take seconds
    return check


def measure_machine(args: argparse.Namespace) -> int:
    """Measure this machine's profile, print a summary and say where the profile is."""
    with args.imports():
        from launch.profiling.machine_profile import measure, summary

    with json_destination(args.json) as emit:
        path, profile = measure(args.output, ranks=args.ranks, precisions=args.precision or ["bf16"])
        print("\n".join([*summary(profile), f"wrote {path}"]))
        if args.output is None:
            print("triaxial plan RECIPE --here reads it")
        emit(dataclasses.asdict(profile))
    return 0


def problems_of(facts: Facts) -> list[str]:
    """The reasons why training cannot run here at all; empty if it can."""
    problems = []
    if facts.torch is None:
        problems.append(f"torch {facts.torch_build}. Install it: pip install torch")
    elif "gloo" not in facts.backends and not (facts.gpus and "nccl" in facts.backends):
        problems.append("this torch has neither gloo nor a usable NCCL: ranks cannot talk. Install the standard build")
    if not facts.packages:
        problems.append(f"triaxial is not installed in this Python: {install_command()}")
    missing = [package.name for package in facts.packages if not package.extra and package.version is None]
    if missing:
        problems.append(f"missing: {', '.join(missing)}. Install: pip install {' '.join(missing)}")
    old = [package for package in facts.packages if not package.extra and package.too_old]
    problems += [f"{each.name} {each.version} is older than {each.minimum}: pip install -U {each.name}" for each in old]
    if not facts.folder_writable:
        problems.append(f"the current folder {Path.cwd()} is not writable: a run cannot be saved. Change to another")
    return problems


def warnings_of(facts: Facts) -> list[str]:
    """Facts that would break or slow down some runs, each with a remedy."""
    warnings = []
    if facts.shm_bytes is not None and facts.shm_bytes < 64 * 2**20:
        warnings.append(
            f"/dev/shm has {size(facts.shm_bytes)}, which local NCCL ranks and data workers can fill. "
            "In a container give it more, for example --shm-size=1g"
        )
    if facts.disk_free_bytes < 5 * GIB:
        warnings.append(
            f"{size(facts.disk_free_bytes)} free on this disk; a checkpoint takes about 12 bytes per parameter"
        )
    if facts.memory_free_bytes is not None and facts.memory_free_bytes < 4 * GIB:
        warnings.append(f"{size(facts.memory_free_bytes)} of memory free; the demo needs about 4 GiB")
    if facts.open_files < 1024:
        warnings.append(f"only {facts.open_files} files may be open at once. Raise the limit: ulimit -n 65536")
    if facts.gpus and facts.limits.get("locked memory", "unlimited") != "unlimited" and "infiniband" in facts.links:
        warnings.append(
            f"only {facts.limits['locked memory']} of memory may be locked, and NCCL over InfiniBand locks its "
            "buffers. Raise the limit: ulimit -l unlimited"
        )
    if facts.compiler is None or not facts.python_headers:
        lacking = "no C++ compiler" if facts.compiler is None else "no Python headers"
        warnings.append(f"{lacking}: parallel.compile = true will fail. Leave it false or install g++ and python3-dev")
    threads = facts.settings.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > facts.cores:
        warnings.append(f"OMP_NUM_THREADS = {threads} is above the {facts.cores} cores. Unset it or lower it")
    if facts.gpus and "nccl" not in facts.backends:
        warnings.append("there are GPUs, but this torch has no NCCL: they cannot train together")
    if not facts.gpus and facts.torch is not None and facts.torch_build != "CPU only":
        warnings.append(f"torch is built for {facts.torch_build} but sees no GPU; training will use the CPU")
    if SLOWED in facts.links.get("gpu clocks", ""):
        warnings.append(f"a GPU is {SLOWED}: {facts.links['gpu clocks']}. Look at its cooling and its power supply")
    if any(not gpu.bf16 for gpu in facts.gpus):
        warnings.append("a GPU here has no bf16. Train in fp32")
    busy = load_warning(facts.load, facts.cores)
    return warnings + [f"{busy}: speeds here are not those of an idle machine"] * bool(busy) + engine_warnings(facts)


def engine_warnings(facts: Facts) -> list[str]:
    """Versions of engines that are refused, and locks for which an engine would wait forever."""
    warnings = []
    for each in facts.engines:
        if each.fault is not None:
            warnings.append(
                f'{each.package} {each.version} {each.fault}: parallel.engine = "{each.engine}" is refused. Install '
                f"another: pip install -U '{each.package}{each.wanted}'"
            )
    for lock in facts.stale_locks:
        warnings.append(
            f"{lock} is the lock of an extension build that has ended: every start that needs this extension waits for "
            f"it. Delete it: rm '{lock}'"
        )
    return warnings


def show(facts: Facts, *, warnings: list[str], problems: list[str], label: str = "") -> None:
    """Print a table on a terminal, plain lines in a pipe. `label`: before each line, where several nodes print."""
    rows = lines_of(facts)
    verdicts = [("yellow", f"warning: {warning}") for warning in warnings]
    verdicts += [("bold red", f"problem: {problem}") for problem in problems]
    if not problems:
        verdicts.append(("", f"training can run here ({len(warnings)} warning{'' if len(warnings) == 1 else 's'})"))
    if label or not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:  # rich may be the missing package
        lines = [f"{name}: {value}" for name, value in rows] + [text for _, text in verdicts]
        sys.stdout.write("".join(f"{label}{line}\n" for line in lines))  # at once: nodes may share the file
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table("what", "found", title="triaxial doctor")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for style, text in verdicts:
        console.print(text, style=style)


def lines_of(facts: Facts) -> list[tuple[str, str]]:
    """The rows of the report: (name, value)."""
    rows = [
        ("python", facts.python),
        ("torch", f"{facts.torch or 'missing'} ({facts.torch_build})"),
        ("cpu", f"{facts.cpu}, {facts.cores} usable core{'' if facts.cores == 1 else 's'}"),
        ("load", "unknown" if facts.load is None else f"{facts.load:.1f} in the last minute"),
        *((f"gpu {i}", f"{gpu.name}, {size(gpu.memory_bytes)}") for i, gpu in enumerate(facts.gpus)),
        *attention_lines(facts),
        *((name, text) for name, text in facts.links.items()),
        ("backends", ", ".join(facts.backends) or "none"),
        ("bf16 on the cpu", facts.bf16_on_cpu),
        ("matrix product", ", ".join(f"{dtype} {speed:g} GFLOP/s" for dtype, speed in facts.matmul_gflops.items())),
        ("threads", f"{facts.torch_threads} (torch), OMP_NUM_THREADS {facts.settings.get('OMP_NUM_THREADS', 'unset')}"),
        ("memory free", size(facts.memory_free_bytes)),
        ("disk free here", size(facts.disk_free_bytes)),
        ("folder", f"{facts.folder} on {facts.filesystem}, {'shared' if facts.folder_shared else 'of this machine'}"),
        ("/dev/shm", size(facts.shm_bytes)),
        ("limits", ", ".join(f"{name} {value}" for name, value in facts.limits.items())),
        (
            "c++ compiler",
            f"{facts.compiler or 'none'}, Python headers {'found' if facts.python_headers else 'missing'}",
        ),
        (
            "weights & biases",
            facts.settings.get("WANDB_MODE", "WANDB_MODE unset: metrics.wandb of the recipe decides"),
        ),
        ("hugging face hub", f"HF_HUB_OFFLINE {facts.settings.get('HF_HUB_OFFLINE', 'unset')}"),
        ("slurm", ", ".join(facts.slurm_commands) or "no commands found"),
    ]
    rows += [(f"engine {each.engine}", engine_text(each, facts)) for each in facts.engines]
    for extra in dict.fromkeys(package.extra for package in facts.packages if package.extra not in FOR_DEVELOPERS):
        members = [package for package in facts.packages if package.extra == extra]
        found = [f"{package.name} {package.version}" for package in members if package.version]
        missing = [package.name for package in members if not package.version]
        text = ", ".join(found)
        if missing:
            text += f"{'; ' if found else ''}missing {', '.join(missing)}"
            text += f": {install_command(extra)}" if extra else f": pip install {' '.join(missing)}"
        rows.append((f"extra [{extra}]" if extra else "core packages", text))
    return rows


def attention_lines(facts: Facts) -> list[tuple[str, str]]:
    """The attention kernels that parallel.attention = "auto" tries, for each generation of GPUs here."""
    if not facts.gpus:
        return [("attention", "torch's kernel for a CPU; parallel.attention is for GPUs")]
    from gpt.model.attention_kernels import NAMES, kernels_for

    lines = []
    for capability in sorted({gpu.capability for gpu in facts.gpus}):
        order = ", then ".join(NAMES[name] for name in kernels_for(capability))
        lines.append(("attention", f"{order} (compute capability {capability[0]}.{capability[1]})"))
    return lines


def engine_text(engine: EngineFacts, facts: Facts) -> str:
    """Whether an engine can be used here, with its version."""
    if engine.package is not None and engine.version is None:
        return f"missing {engine.package}: {install_command(engine.extra)}"
    text = f"torch {facts.torch}" if engine.package is None else f"{engine.package} {engine.version}"
    if engine.fault is not None:
        return f"{text} {engine.fault}; it needs {engine.wanted}"
    here = "cuda" if facts.gpus else "cpu"
    if here not in engine.devices:
        return f"{text}, but there is no GPU: it runs on {' and '.join(engine.devices)} only"
    return f"{text}, on {here}"


def size(count: int | None) -> str:
    """A number of bytes in GiB or MiB."""
    if count is None:
        return "unknown"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
