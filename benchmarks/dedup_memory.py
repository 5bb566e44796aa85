"""One de-duplication of generated documents, all its stages, and the peak memory of every process; compares nothing."""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_prep.dedup import exact as dedup_exact
from data_prep.dedup import fuzzy as dedup_minhash
from data_prep.dedup.exact import ExactConfig
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.documents.shards import Document, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace

WORDS, DOCUMENTS_A_SHARD = 60, 10_000
BOILERPLATE = "This page is not available in your region. Please accept our cookies, or come back at another time."
_VOCABULARY = 100_000


def generated(n: int) -> Iterator[Document]:
    """Documents of 60 words with Zipf's frequencies: of 20, one is the same boilerplate, and four are copies of others
    with 3 of 60 words exchanged."""
    shares = np.cumsum(1 / np.arange(1, _VOCABULARY + 1))
    for start in range(0, n, 1000):
        rng = np.random.default_rng([3, start])
        numbers = np.searchsorted(shares, rng.random((1000, WORDS)) * shares[-1])
        numbers[4::5] = numbers[3::5]
        at = rng.integers(0, WORDS, (200, 3))
        numbers[4::5][np.arange(200)[:, None], at] = rng.integers(0, _VOCABULARY, (200, 3))
        for i, row in enumerate(numbers[: n - start].tolist(), start):
            yield Document(f"doc-{i}", BOILERPLATE if i % 20 == 0 else " ".join(f"w{number}" for number in row))


def measure_memory(documents: str, method: str) -> dict[str, Any]:
    """Peaks of this process and of its workers, seconds by stage, bytes on disk by folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = _write_shards(folder, int(documents))
        peaks: dict[int, int] = {}
        stop = threading.Event()
        watch = threading.Thread(target=_watch, args=(peaks, stop), daemon=True)
        watch.start()
        started = time.perf_counter()
        with Workspace(folder / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
            run = ShardRun(workspace)
            if method == "exact":
                copies = dedup_exact.find_copies(run, ExactConfig(), shards)
                run.map(dedup_exact.REMOVAL, dedup_exact.COPY, shards, extra_inputs=copies)
            else:
                fuzzy = FuzzyConfig(method="gpt3" if method == "gpt3" else "banded")
                copies = dedup_minhash.find_near_copies(run, fuzzy, shards)
                run.map(dedup_minhash.REMOVAL, dedup_minhash.NEAR_COPY, shards, extra_inputs=copies)
            elapsed_s = time.perf_counter() - started
            stop.set()
            watch.join()
            disk = {
                place.name: sum(path.stat().st_size for path in place.iterdir())
                for place in sorted((folder / "work").iterdir())
                if place.is_dir()
            }
        counts = run.counts[-1]
        return {
            "documents": counts.documents_in,
            "dropped": counts.dropped,
            "elapsed_s": elapsed_s,
            "worker_peak_bytes": max(peaks.values()),
            "caller_peak_bytes": _peak_bytes("self"),
            "seconds": {stage: s for stage, (_, s) in run.seconds.items()},
            "tasks": {stage: n for stage, (n, _) in run.seconds.items()},
            "pairs": run.facts.get("minhash_compare", []),
            "disk_bytes": sum(disk.values()),
            "disk": disk,
        }


def _write_shards(folder: Path, n: int) -> dict[str, Path]:
    shards = {}
    documents = generated(n)
    for number in range(-(-n // DOCUMENTS_A_SHARD)):
        path = shards[f"{number:05d}"] = folder / f"{number:05d}.jsonl.zst"
        with write_shard(path) as write:
            for _, document in zip(range(DOCUMENTS_A_SHARD), documents, strict=False):
                write(document)
    return shards


def _watch(peaks: dict[int, int], stop: threading.Event) -> None:
    """Keep the high-water mark of every child process, which Linux keeps for us while it lives."""
    children = Path("/proc/self/task").glob("*/children")
    files = list(children)
    while not stop.wait(0.1):
        for file in files:
            for pid in file.read_text().split():
                peaks[int(pid)] = max(peaks.get(int(pid), 0), _peak_bytes(pid))


def _peak_bytes(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    import sys

    print(json.dumps(measure_memory(*sys.argv[1:3]), indent=1))
