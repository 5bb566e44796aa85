"""Time, messages, bytes and memory of what grows with the number of ranks, for up to 10,000 simulated ranks.

    python benchmarks/simulated_ranks.py [--ranks 100 1000 10000] [--parts NAME ...] [--json FILE]

The code is the real one; peers are simulated in this process: a process group whose peers send what this rank sends,
entries of a real TCP store, and report files. Each measurement runs in a separate process. `growth` is the exponent
of n between the two largest numbers of ranks, for the totals of all ranks: n log n gives about 1.1.
The last line printed is one JSON object. docs/results/reliability/ten_thousand_ranks.md has the figures.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parallel"))
from rank_parts import PARTS


def measure(name: str, n_ranks: int) -> dict[str, Any]:
    """Run one part in a forked process; its peak memory counts from where it began."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(name, n_ranks, send))
    process.start()
    send.close()
    try:
        return {"part": name, "ranks": n_ranks, **receive.recv()}
    except EOFError:
        return {"part": name, "ranks": n_ranks, "failed": True}
    finally:
        process.join()


def _run(name: str, n_ranks: int, send: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark at the present size
        before, started_at, used = _memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
        cost = PARTS[name](n_ranks, Path(folder))
        send.send(
            {
                "seconds": time.perf_counter() - started_at,
                "cpu_seconds": time.process_time() - used,
                "messages": cost.messages,
                "bytes": cost.bytes,
                "peak_bytes": max(0, _memory_bytes("VmHWM") - before),
            }
        )


def _memory_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def growth(rows: list[dict[str, Any]], key: str) -> float | None:
    """The exponent of n between the two largest numbers of ranks."""
    small, large = rows[-2:] if len(rows) > 1 else (rows[-1], rows[-1])
    if small["ranks"] == large["ranks"] or not small.get(key) or not large.get(key):
        return None
    return round(math.log(large[key] / small[key]) / math.log(large["ranks"] / small["ranks"]), 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = Table(
        "part", "ranks", "cpu s", "messages", "MB of all ranks", "peak MB", "growth of MB, cpu s", box=box.SIMPLE
    )
    results: list[dict[str, Any]] = []
    for name in arguments.parts:
        rows: list[dict[str, Any]] = []
        for n_ranks in sorted(arguments.ranks):
            row = measure(name, n_ranks)
            print(row, file=sys.stderr, flush=True)
            if not row.get("failed"):
                rows.append(row)
        for row in rows:
            last = row is rows[-1]
            figures = f"{growth(rows, 'bytes')}, {growth(rows, 'cpu_seconds')}" if last else ""
            table.add_row(
                row["part"],
                f"{row['ranks']:,}",
                f"{row['cpu_seconds']:.2f}",
                "" if row["messages"] is None else f"{row['messages']:,}",
                f"{row['bytes'] / 1e6:,.2f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                figures,
            )
        results += rows
    Console(width=140).print(table)
    line = json.dumps({"benchmark": "simulated_ranks", "results": results})
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
