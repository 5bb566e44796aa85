"""`triaxial prepare verify`: compare a corpus with the description in its corpus.json."""

import argparse
import time
from pathlib import Path

from launch.processes.terminal import SafeConsole, work_progress, worker_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a folder with a corpus.json, such as data/demo")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="threads (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Print each fault, or that there is none; returns status 1 if there is one."""
    from data_prep.corpus.verify import verify

    n_threads = worker_count(args.workers)
    started_at = time.perf_counter()
    with work_progress() as progress:
        progress.start(f"comparing {args.folder}")
        found = verify(args.folder, n_threads=n_threads, advance=lambda done, total: progress.update(done, total=total))
    elapsed_s = time.perf_counter() - started_at
    console = SafeConsole(emoji=False, highlight=False, markup=False, soft_wrap=True)
    for fault in found.faults:
        console.print(fault)
    read = f"{found.files} files, {found.n_bytes / 1e6:,.1f} MB of token files in {elapsed_s:.1f} s"
    if found.faults:
        faults = "1 fault" if len(found.faults) == 1 else f"{len(found.faults)} faults"
        console.print(f"{args.folder}: {faults} ({read})")
        return 1
    console.print(f"{args.folder}: whole; {found.tokens:,} tokens, {found.documents:,} documents ({read})")
    return 0
