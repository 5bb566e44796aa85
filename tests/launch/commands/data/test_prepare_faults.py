"""`triaxial prepare` killed, divided or disturbed: the corpus, with its corpus.json, always has the same bytes."""

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from launch.main import main

pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")

ROOT = Path(__file__).parents[4]
SHARED = ROOT.parent / "shared" / "data"
DEADLINE_S = 240.0  # only there to end a broken test


def write_lines(path: Path, names: list[str]) -> None:
    lines = [json.dumps({"id": name, "text": topics[name]}) for name in names]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The help topics of Python in four files of JSON lines, and real web archives if there are any."""
    folder = tmp_path_factory.mktemp("sources")
    names = sorted(topics)
    for number in range(4):
        write_lines(folder / f"topics-{number}.jsonl.gz", names[number::4])
    write_lines(folder / "twice.jsonl.gz", names[:5])  # with copies for the de-duplication
    for name in ("resiliparse-clipped", "resiliparse-warcfile", "whirlwind"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(SHARED / "warc" / f"{name}.warc.gz", folder / f"{name}.warc.gz")
    return folder


def recipe(folder: Path, sources: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text(
        f'input.paths = ["{sources}/*.gz"]\noutput.folder = "{folder}/corpus"\noutput.validation_fraction = 0.2\n'
        'quality.rules = ["c4"]\nquality.c4.min_num_sentences = 2\nlanguage.min_share = 0.3\n'
        "tokenizer.vocab_size = 500\n"
    )
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory, sources) -> dict[str, bytes]:
    """The corpus of an undisturbed run with one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["prepare", str(recipe(folder, sources)), "--workers", "1"]) == 0
    return content(folder / "corpus")


def content(corpus: Path) -> dict[str, bytes]:
    """Bytes of every file of a corpus; corpus.json without the recipe's input paths and the digest over them."""
    found = {path.name: path.read_bytes() for path in corpus.iterdir() if path.is_file()}
    description = json.loads(found["corpus.json"])
    del description["recipe"]["input"], description["sha256"]
    found["corpus.json"] = json.dumps(description).encode()
    assert {"corpus.json", "tokenizer.model", "train.bin", "train.idx", "validation.bin", "validation.idx"} <= set(
        found
    )
    return found


def start(path: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch.main", "prepare", str(path), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """The worker processes of a run."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pids = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return []


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def keys(work: Path, name: str = "manifest*.jsonl") -> list[str]:
    """The entries of all tasks in the manifests."""
    lines = [line for path in work.glob(name) for line in path.read_bytes().splitlines(keepends=True)]
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [entry["key"] for entry in entries if "key" in entry]


def n_left(work: Path) -> list[str]:
    """Temporary files, which a run must not leave behind."""
    return [str(path) for path in work.rglob("*") if "tmp" in path.name]


def test_two_shares_one_of_them_killed_and_restarted(tmp_path, sources, expected):
    path, work = recipe(tmp_path, sources), tmp_path / "corpus/work"
    words = ("--workers", "1", "--progress-every", "0.2")
    one, two = (start(path, "--share", f"{number}/2", *words) for number in (1, 2))
    wait_for(lambda: len(keys(work, "manifest-2-of-2.jsonl")) >= 8, two)
    two.kill()
    two.communicate()
    done = len(keys(work, "manifest-2-of-2.jsonl"))
    beside = start(path, "--workers", "1")  # not a share: it may not work in this folder now
    out, err = beside.communicate(timeout=60)
    assert (beside.returncode, err.count("\n")) == (2, 1), err
    assert "another run is working in this folder (pid " in err
    again = start(path, "--share", "2/2", *words)
    (out, err), (out_again, err_again) = (each.communicate(timeout=DEADLINE_S) for each in (one, again))
    assert (one.returncode, again.returncode) == (0, 0), err + err_again
    assert "documents by step" in out
    assert "share 2/2 is done; share 1/2 writes the corpus" in out_again
    assert content(tmp_path / "corpus") == expected
    assert len(keys(work, "manifest-2-of-2.jsonl")) > done
    assert len(keys(work)) == len(set(keys(work))), "no task was done twice"
    assert n_left(work) == []


@pytest.mark.rehearse
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_twenty_random_kills(tmp_path, sources, expected, victim):
    """SIGKILL at random times until twenty have hit; then the run ends with the same bytes."""
    rng = random.Random(victim)
    path, work = recipe(tmp_path, sources), tmp_path / "corpus/work"
    kills = 0
    while kills < 20:
        process = start(path, "--workers", "2")
        wait_for(lambda process=process: children(process.pid), process)
        while process.poll() is None and kills < 20:
            time.sleep(rng.uniform(0.0, 0.4))
            victims = children(process.pid) if victim == "worker" else [process.pid]
            if victims and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), 9)
                    kills += 1
        _, err = process.communicate(timeout=DEADLINE_S)
        if victim == "worker" and process.returncode:  # by chance the same task was hit twice
            assert "was killed by SIGKILL, twice" in err, err
            assert err.count("\n") == 1
        if process.returncode == 0 and kills < 20:  # it came through: from the start again
            assert content(tmp_path / "corpus") == expected
            shutil.rmtree(tmp_path / "corpus")
    assert main(["prepare", str(path), "--workers", "2"]) == 0
    assert content(tmp_path / "corpus") == expected
    assert n_left(work) == []
    assert len(keys(work)) == len(set(keys(work))), "nothing that was in the manifest was done again"


@pytest.mark.rehearse
@pytest.mark.timeout(600)
def test_workers_names_order_and_shards_change_nothing(tmp_path, sources, expected):
    for n_workers in (2, 7):
        folder = tmp_path / str(n_workers)
        folder.mkdir()
        assert main(["prepare", str(recipe(folder, sources)), "--workers", str(n_workers)]) == 0
        assert content(folder / "corpus") == expected, n_workers

    other, folder = tmp_path / "other", tmp_path / "divided otherwise"
    other.mkdir()
    folder.mkdir()
    names = sorted(topics)
    random.Random(1).shuffle(names)
    for number in range(3):  # three files of lines instead of four, in another order and under other names
        write_lines(other / f"z{number}.jsonl.gz", names[number::3])
    write_lines(other / "a.jsonl.gz", sorted(topics)[:5])
    archives = sorted(sources.glob("*.warc.gz"), reverse=True)
    whole = [archive for archive in archives if "clipped" not in archive.name]
    if whole:
        (other / "m.warc.gz").write_bytes(b"".join(archive.read_bytes() for archive in whole))
        shutil.copy(sources / "resiliparse-clipped.warc.gz", other / "b.warc.gz")
    assert main(["prepare", str(recipe(folder, other)), "--workers", "2"]) == 0
    assert content(folder / "corpus") == expected
