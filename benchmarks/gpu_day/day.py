"""The GPU day: run the parts one after the other, each in a process of its own with a time limit, and report them.

    make gpu [ARGS="--only compile,memory"]            on a machine with a CUDA GPU
    python benchmarks/gpu_day/day.py --device cpu --tiny   tries the harness and every part that runs on a CPU

A part's result is written when it ends, and what it has found so far after each check. A second call goes on after the
parts that ended; --again repeats them. One failure stops nothing else.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # a machine without our package installed

import torch  # noqa: E402
from job import Job, LeftOut  # noqa: E402
from page import write_report  # noqa: E402
from parts import PARTS, Part, load  # noqa: E402
from results import Result, machine_facts, read_result, write_result  # noqa: E402

from gpt.errors import ConfigError  # noqa: E402
from launch.processes.local_ranks import signals_unwind  # noqa: E402
from launch.processes.rank_process import die_with_parent  # noqa: E402

DAY_S = 3600
MIN_PART_S = 20  # a part is not begun with less time left


def main() -> int:
    args = parse_arguments()
    if args.function is not None:
        return run_part(args)
    if args.list:
        print("\n".join(f"{part.name:12}{part.limit_s:>5} s  {part.title}" for part in PARTS))
        return 0
    try:
        chosen = chosen_parts(args.only, args.first)
        check_device(args.device)
    except ConfigError as error:
        print(f"gpu day: {error}", file=sys.stderr)
        return 2
    args.results.mkdir(parents=True, exist_ok=True)
    with signals_unwind():  # so that nothing of a part outlives this process
        return run_parts(chosen, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help="these parts, in this order")
    parser.add_argument("--first", metavar="NAME,...", help="these parts before the others")
    parser.add_argument("--again", action="store_true", help="repeat parts that have ended")
    parser.add_argument("--list", action="store_true", help="print the parts and their time limits")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU; the figures mean nothing")
    parser.add_argument("--limit-s", type=float, default=DAY_S, help=f"seconds for all parts (default: {DAY_S})")
    parser.add_argument("--results", type=Path, help="folder (default: runs/gpu_day, on a CPU runs/gpu_day_cpu)")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a checkout of nanoGPT, as a peer in speed")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in the process of a part: its name, and its function
    parser.add_argument("--function", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.results is None:
        args.results = ROOT / "runs" / ("gpu_day" if args.device == "cuda" else "gpu_day_cpu")
    args.results = args.results.resolve()
    return args


def part_named(name: str) -> Part:
    for part in PARTS:
        if part.name == name:
            return part
    raise ConfigError(f"there is no part '{name}'. Use some of {', '.join(part.name for part in PARTS)}")


def chosen_parts(only: str | None, first: str | None) -> list[Part]:
    if only is not None:
        return [part_named(name.strip()) for name in only.split(",")]
    front = [part_named(name.strip()) for name in first.split(",")] if first is not None else []
    return [*front, *(part for part in PARTS if part not in front)]


def check_device(device: str) -> None:
    """ConfigError without a driver, without a CUDA build of torch, or without a GPU that both can use."""
    if device == "cpu":
        return
    if not has_driver():
        raise ConfigError(
            "this machine has no NVIDIA driver (no /dev/nvidiactl), so no part can run. "
            "To try the harness: python benchmarks/gpu_day/day.py --device cpu --tiny"
        )
    if torch.version.cuda is None:
        raise ConfigError(
            f"torch {torch.__version__} has no CUDA. Remove .venv-gpu and name a CUDA build: make gpu "
            'PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cu130"'
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU: compare the driver's CUDA "
            "version in nvidia-smi, and CUDA_VISIBLE_DEVICES"
        )


def has_driver() -> bool:
    """Return whether the kernel has NVIDIA's driver, or Windows lends its own to this Linux."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


# ---- all parts -------------------------------------------------------------------------------------------------------


def run_parts(chosen: Sequence[Part], args: argparse.Namespace, *, shown: Sequence[Part] = PARTS) -> int:
    """Run the parts that have not ended yet; 1 if any of the chosen ones failed, 3 if some are left.

    `shown`: the parts of the page.
    """
    facts, ends_at = machine_facts(args.device), time.monotonic() + args.limit_s
    say(f"{facts['device']}, torch {facts['torch']}; results in {args.results}")
    for number, part in enumerate(chosen, 1):
        before = read_result(args.results, part.name)
        label = f"[{number}/{len(chosen)}] {part.name}"
        if before is not None and before.is_over and not args.again:
            say(f"{label}: {before.status} before; --again repeats it")
            continue
        left_s = ends_at - time.monotonic()
        if left_s < MIN_PART_S:
            say(f"{label}: not begun, because --limit-s {args.limit_s:g} is over; the next call goes on here")
            break
        say(f"{label}: {part.title} ...")
        result = run_one(part, args, facts, limit_s=min(part.limit_s, left_s))
        say(f"{label}: {result.headline}")
        for line in result.complaints:
            say(f"    {line}")
        write_report(args.results, facts, shown)
    page, _ = write_report(args.results, facts, shown)
    ended = [read_result(args.results, part.name) for part in chosen]
    say(f"written to {page} and gpu_report.json")
    if any(result is not None and result.status in ("failed", "error", "time limit") for result in ended):
        return 1
    return 0 if all(result is not None and result.is_over for result in ended) else 3


def run_one(part: Part, args: argparse.Namespace, facts: dict[str, str], *, limit_s: float) -> Result:
    """Run a part in a child process of its own session. Its result is on disk when this returns."""
    folder = args.results / part.name
    folder.mkdir(parents=True, exist_ok=True)
    started_at, began = time.time(), time.monotonic()
    write_result(args.results, Result(part.name, part.title, "running", started_at=started_at, facts=facts))
    command = [sys.executable, str(HERE / "day.py"), "--part", part.name, "--function", part.function]
    command += ["--device", args.device, "--results", str(args.results), *(["--tiny"] if args.tiny else [])]
    command += ["--nanogpt", str(args.nanogpt.resolve())] if args.nanogpt is not None else []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p),
    }
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as the launcher sets it
    with (folder / "output.log").open("ab") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
        try:
            status = child.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(child)
    found = read_result(args.results, part.name)
    assert found is not None
    if found.status == "running":  # it did not come to its end
        cut = limit_s < part.limit_s
        ending = f"ended after {limit_s:.0f} s" if status is None else f"the process ended with status {status}"
        state = ("cut short" if cut else "time limit") if status is None else "error"
        found = found.ended(state, f"{ending}; see {part.name}/output.log", time.monotonic() - began)
        write_result(args.results, found)
    return found


def end_session(child: "subprocess.Popen[bytes]") -> None:
    """End the child and what it started, of which nothing may keep the GPU."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def say(text: str) -> None:
    print(text, flush=True)


# ---- one part, in its own process ------------------------------------------------------------------------------------


def run_part(args: argparse.Namespace) -> int:
    """The child's side: add each check to the result as it comes, then the ending."""
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: end_now())
    result, began = read_result(args.results, args.part), time.monotonic()
    assert result is not None
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    job = Job(device, args.results / args.part, args.results / "shared", args.tiny, args.nanogpt)
    job.shared.mkdir(exist_ok=True)
    status, text = "passed", ""
    try:
        for check in load(args.function)(job):
            result = result.with_check(check)
            write_result(args.results, result)
    except LeftOut as reason:
        status, text = ("left out" if not result.checks else "passed"), str(reason)
    except Exception as error:
        traceback.print_exc()
        status, text = "error", f"{type(error).__name__}: {error}"[:2000]
    if status == "passed" and result.failures:
        status = "failed"
    write_result(args.results, result.ended(status, text, time.monotonic() - began))
    return 0


def end_now() -> NoReturn:
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main())
