"""A machine's network goes silent during a run: three ranks, each in its own network namespace, on one bridge."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from namespaces import SUBNET, ip, three_machines

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]


@pytest.fixture
def switch():
    """Names of three network namespaces, and of the ports that connect them to one bridge."""
    with three_machines() as made:
        yield made


def start(space: str, rank: int, words: list[str], said: Path) -> subprocess.Popen:
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    place |= {"MASTER_ADDR": f"{SUBNET}.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": "wire"}
    command = ["ip", "netns", "exec", space, sys.executable, "-m", "launch.main", *words]
    with said.open("w") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, **place, "PYTHONPATH": str(ROOT)},
            cwd=said.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def last_step(run: Path) -> int:
    with suppress(OSError, ValueError, IndexError, KeyError):
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return 0


def wait_for(what, timeout_s: float, ranks: list[subprocess.Popen]) -> None:
    ends_at = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < ends_at
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.1)


@pytest.mark.rehearse
@pytest.mark.parametrize("lost", [1, 0])
def test_a_rank_that_the_network_loses_is_a_hang(tiny_corpus, tmp_path, switch, lost):
    """The bridge drops its packets: no connection breaks, and all ranks wait. The files are still shared."""
    spaces, ports = switch
    run = tmp_path / "run"
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(run), "--metrics.wandb", "disabled"]
    words += ["--batch.global_batch_tokens", "384", "--train.total_tokens", str(384 * 5000)]
    words += ["--checkpoint.every_tokens", str(384 * 1000), "--run.peak_flops_per_s", "1e12"]
    words += ["--health.hang_timeout_s", "15", "--health.first_step_timeout_s", "120"]
    said = [tmp_path / f"said{rank}.txt" for rank in range(3)]
    ranks = [start(spaces[rank], rank, words, said[rank]) for rank in range(3)]
    try:
        wait_for(lambda: last_step(run) >= 10, 200, ranks)
        ip("link", "set", ports[lost], "nomaster")
        codes = [rank.wait(timeout=200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    texts = "\n".join(file.read_text() for file in said)
    assert codes == [-9, -9, -9], texts
    (folder,) = (path for path in (run / "hangs").iterdir() if path.is_dir())
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (verdict["ranks"], verdict["kind"]) == ([lost], "link"), verdict["lines"]
    assert f"(address {SUBNET}.{lost + 1})" in verdict["lines"][0]
    for rank in range(3):
        report = json.loads((folder / f"rank-{rank:05}.json").read_text())
        assert report["status"] == "running"
        assert report["addresses"] == [f"{SUBNET}.{rank + 1}"]
        assert report["last"] is not None
    assert verdict["lines"][0] in texts
