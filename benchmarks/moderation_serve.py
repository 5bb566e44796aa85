"""Latency of `triaxial moderate serve` under many clients, and whether each answer is right and memory stays flat.

    python benchmarks/moderation_serve.py --run RUN --texts FILE.jsonl [--field text] [--clients 50] [--requests 20]
        [--loads 4] [--count 200] [--threads 2] [--json FILE]

Each client is a thread with one connection; it sends one text, waits for the answer, and sends the next. The server is
a process of its own on 127.0.0.1. Every answer is compared with the scores that the run gives directly: 1e-5.
The last line printed is one JSON object.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


def client(number: int, port: int, wanted: dict[str, list[float]], requests: int, found: list[dict[str, Any]]) -> None:
    """Send texts one after the other; append the seconds, the largest error and the failures."""
    draw, texts = random.Random(number), list(wanted)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    spans, largest, failed = [], 0.0, 0
    for _ in range(requests):
        text = draw.choice(texts)
        started = time.perf_counter()
        connection.request("POST", "/v1/moderations", body=json.dumps({"input": text}).encode())
        answer = connection.getresponse()
        body = json.loads(answer.read())
        spans.append(time.perf_counter() - started)
        if answer.status != 200:
            failed += 1
            continue
        scores = body["results"][0]["category_scores"].values()
        largest = max(largest, *(abs(a - b) for a, b in zip(scores, wanted[text], strict=True)))
    connection.close()
    found.append({"spans": spans, "largest": largest, "failed": failed})


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def load(server: subprocess.Popen[str], port: int, args: argparse.Namespace, wanted: dict[str, list[float]]) -> Any:
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=client, args=(number, port, wanted, args.requests, found))
        for number in range(args.clients)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - started
    spans = sorted(span for one in found for span in one["spans"])
    cuts = statistics.quantiles(spans, n=100)
    return {
        "requests": len(spans),
        "lost": args.clients * args.requests - len(spans),
        "failed": sum(one["failed"] for one in found),
        "largest_error": max(one["largest"] for one in found),
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
        "requests_per_s": len(spans) / elapsed_s,
        "server_memory_mb": memory_mb(server.pid),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--field", default="text")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loads", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    from gpt.moderation.label_files import read_records
    from launch.moderation.open_run import load_classifier

    texts = [record.get(args.field) for _, record in read_records(args.texts)]
    texts = [text for text in texts if isinstance(text, str) and text.strip()]
    texts = texts[:: max(1, len(texts) // args.count)][: args.count]
    wanted = dict(zip(texts, load_classifier(args.run).scores(texts).tolist(), strict=True))
    command = [sys.executable, "-m", "launch.main", "moderate", "serve", str(args.run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().rstrip().rpartition(":")[2])
        loads = [load(server, port, args, wanted) for _ in range(args.loads)]
        server.terminate()
        server.wait()
    result = {
        "clients": args.clients,
        "threads": args.threads,
        "loads": loads,
        "all_right": max(one["largest_error"] for one in loads) < TOLERANCE,
        "memory_growth_mb": loads[-1]["server_memory_mb"] - loads[0]["server_memory_mb"],
    }
    text = json.dumps(result)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
