"""Seconds to the first figure of `triaxial report --serve` in a browser that has just started, and the server's memory.

python -m benchmarks.live_report --lines 1000000 --rounds 5

Each round starts a server and a browser with an empty profile. There is no peer: the target is 2 s, below 500 MB.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from gpt.telemetry.time_ledger import TimeLedger
from launch.processes.machine_facts import bf16_on_cpu
from tests.launch.browser import browsing


def write_run(folder: Path, lines: int) -> None:
    """Write a run with so many logged steps, as training writes them."""
    with TimeLedger(folder / "ledger.jsonl", world_size=8, restart_count=0) as ledger:
        ledger.resume(step=0, tokens=0)
        ledger.step_done(step=lines, tokens=lines * 524_288)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            values = {
                "step": step,
                "loss": 2.5 + 8 / math.sqrt(step) + 0.05 * math.sin(step * 1.7),
                "gradient_norm": 0.4 + 0.1 * math.cos(step * 0.9),
                "learning_rate": 6e-4 * (1 - step / lines),
                "tokens_per_s": 150_000.0 + 500 * math.sin(step * 0.01),
                "tokens_seen": step * 524_288,
                "mfu": 0.4,
                "step_s": 3.5,
                "peak_memory_bytes": 60 << 30,
            }
            file.write(json.dumps(values) + "\n")


def resident_mb(pid: int) -> float:
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1000


def one_round(run: Path, profile: Path, picture: Path | None) -> dict[str, float]:
    started_at = time.perf_counter()
    command = [sys.executable, "-m", "launch.main", "report", "--serve", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            at = {"address": time.perf_counter() - started_at}
            opened_at = time.perf_counter()
            with browsing(profile) as browser:
                tab = browser.page(address)
                tab.until("document.querySelectorAll('svg.chart path.line').length > 0")
                at["first figure after the address"] = time.perf_counter() - opened_at
                tab.until("document.querySelectorAll('svg.chart').length >= 7")
                at["all figures after the address"] = time.perf_counter() - opened_at
                time.sleep(20)  # the server reads the rest of the file meanwhile
                if picture is not None:
                    tab.picture(picture)
            at["server MB"] = resident_mb(server.pid)
        finally:
            server.terminate()
    return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="write a PNG of the page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        run.mkdir()
        write_run(run, args.lines)
        rounds = []
        for number in range(args.rounds):
            (profile := Path(name) / f"profile_{number}").mkdir()
            rounds.append(one_round(run, profile, args.picture))
            print(json.dumps({key: round(value, 2) for key, value in rounds[-1].items()}), flush=True)
    print(f"{args.lines:,} lines, bf16 {bf16_on_cpu()}, medians of {args.rounds}:")
    for key in rounds[0]:
        print(f"  {key:32} {median(at[key] for at in rounds):8.2f}")


if __name__ == "__main__":
    main()
