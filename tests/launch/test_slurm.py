"""The sbatch templates under a real Slurm controller with two nodes on this machine: signal, save, requeue, end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from slurm_cluster import Slurm, running_cluster, wait_for

from gpt.telemetry.goodput import read_account
from launch.main import main

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "slurm" / "train.sbatch"
PREPARE = ROOT / "slurm" / "prepare.sbatch"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_cluster() as cluster:
        yield cluster


def recipe(tiny_corpus: Any, folder: Path, *, steps: int) -> str:
    """The small recipe of these tests with its run under `folder`, `steps` steps long."""
    text = tiny_corpus.recipe.read_text()
    text = re.sub(r"(?m)^directory = .*$", f'directory = "{folder}/run"', text)
    text = re.sub(r"(?m)^total_tokens = .*$", f"total_tokens = {512 * steps}", text)
    text = re.sub(r"(?m)^every_tokens = .*$", "every_tokens = 1_000_000_000", text)
    return text + '[metrics]\nwandb = "disabled"\nlog_every_steps = 1\n'


@pytest.mark.timeout(500)
def test_a_job_that_fails_or_comes_near_its_time_limit_is_queued_again_and_resumes(slurm, tiny_corpus):
    """A rank is killed in the first start, and Slurm's signal ends the second one."""
    file, metrics = slurm.folder / "recipe.toml", slurm.folder / "run" / "metrics.jsonl"
    file.write_text(recipe(tiny_corpus, slurm.folder, steps=1_000_000))
    edited = ("--account=anybody", "--partition=test")  # what a user edits in the template, and nothing else
    variables = {"TRIAXIAL_PYTHON": sys.executable, "TRIAXIAL_RANKS_PER_NODE": "1", "TRIAXIAL_MAX_RESTARTS": "0"}
    variables |= {"TRIAXIAL_NODE_WAIT_S": "20", "TRIAXIAL_WRAPPER": "env WRAPPED=yes"}
    setup = slurm.folder / "setup.sh"
    setup.write_text("[[ $# -eq 0 ]] || return 1\nexport PREPARED=yes\n")
    variables |= {"TRIAXIAL_SETUP": str(setup), "TRIAXIAL_SRUN": "--comment=more", "TRIAXIAL_RANK_LOGS": "yes"}
    number = slurm("sbatch", "--parsable", *edited, str(TEMPLATE), str(file), **variables).strip()
    wait_for(metrics.exists, what="the first training step", slurm=slurm)
    environment = Path(f"/proc/{ranks_of(file)[1]}/environ").read_bytes()
    assert b"\0PREPARED=yes\0" in environment
    assert b"\0WRAPPED=yes\0" in environment
    logs = slurm.folder / f"triaxial-{number}"
    preflight = [path.read_text() for path in logs.glob("preflight*.log")]
    reduced = [re.findall(r"\nnode (n\d): all-reduce: 2 ranks on 2 nodes \(gloo\), ", text) for text in preflight]
    assert sorted(reduced) == [["n1"], ["n2"]]
    kill_rank_1(file)
    wait_for(lambda: slurm.job(number)["Restarts"] == "1", what="the requeue after the failure", slurm=slurm)
    wait_for(lambda: starts_of(slurm.folder / "run") == 2, what="the first step of the second start", slurm=slurm)

    # Less than five minutes are left of the time limit now, so Slurm's own clock sends the template's signal at its
    # next look, at most 30 s from here.
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=5")
    wait_for(lambda: slurm.job(number)["Restarts"] == "2", what="the requeue after the signal", slurm=slurm)
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    (saved,) = (slurm.folder / "run" / "checkpoints").glob("step-*")
    saved_step = int(saved.name.removeprefix("step-"))
    file.write_text(recipe(tiny_corpus, slurm.folder, steps=saved_step + 5))  # else the test would last for days
    wait_for(lambda: slurm.job(number)["JobState"] in ("COMPLETED", "FAILED"), what="the job's end", slurm=slurm)

    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "2", "0:0"), slurm.logs()
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, saved_step + 6)), "steps were lost or done twice"
    log = (slurm.folder / f"triaxial-{number}.out").read_text()
    assert re.search(r"training failed with status \d+; .*; requeued\n", log)
    assert "saved after a signal; requeued\n" in log
    assert f"job {number}, start 3 on n[1-2]" in log
    printed = [path.read_text() for path in sorted(logs.glob("ranks/node[01]/*/attempt_0/0/stdout.log"))]
    assert len(printed) == 6, "three starts on two nodes"
    assert any("stopped by a signal at step" in text for text in printed)
    first, second = sorted((slurm.folder / f"triaxial-{number}").glob("node*.log"))
    assert (first.name.partition("-")[0], second.name.partition("-")[0]) == ("node0", "node1")
    for node_log in (first, second):
        assert "the launcher of this node got SIGUSR1" in node_log.read_text()
    said = first.read_text() + second.read_text()  # which node has rank 0 is torchrun's choice
    assert f"stopped by a signal at step {saved_step:,}" in said
    assert f"resumed from {saved}" in said


def starts_of(run: Path) -> int:
    """How many starts of the ranks have trained a step."""
    account = read_account(run / "ledger.jsonl")
    return sum(process.from_step is not None for process in account.processes) if account is not None else 0


def ranks_of(file: Path) -> dict[int, int]:
    """Process id by rank of the ranks that train by this recipe now."""
    found = subprocess.run(["pgrep", "-f", f"launch.main train {file}"], capture_output=True, text=True).stdout.split()
    ranks = {}
    for pid in map(int, found):
        with contextlib.suppress(OSError):
            rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
            if rank:
                ranks[int(rank[1])] = pid
    return ranks


def kill_rank_1(file: Path) -> None:
    os.kill(ranks_of(file)[1], signal.SIGKILL)


def submit(slurm: Slurm, name: str, text: str, *options: str, **variables: str) -> str:
    """Submit the training template as a user would; returns the job id."""
    file = slurm.folder / f"{name}.toml"
    file.write_text(text.replace(f'"{slurm.folder}/run"', f'"{slurm.folder}/{name}"'))
    edited = ("--account=anybody", "--partition=test")
    settings = {"TRIAXIAL_PYTHON": sys.executable, "TRIAXIAL_RANKS_PER_NODE": "1", **variables}
    return slurm("sbatch", "--parsable", *edited, *options, str(TEMPLATE), str(file), **settings).strip()


def ended(slurm: Slurm, number: str) -> Callable[[], bool]:
    return lambda: slurm.job(number)["JobState"] in ("COMPLETED", "FAILED", "NODE_FAIL")


BAD_SET_UPS = {
    "a module is missing": ('echo "no such module"; [[ $SLURMD_NODENAME != n2 ]]', "no training: "),
    "the network interface is another": (
        'echo "no such module"; [[ $SLURMD_NODENAME != n2 ]] || export GLOO_SOCKET_IFNAME=nowhere',
        "node n2: rank 1 failed at phase 'loop back': ",
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("text", "reason"), BAD_SET_UPS.values(), ids=BAD_SET_UPS)
def test_a_bad_node_is_named_before_any_rank_starts(slurm, tiny_corpus, text, reason):
    setup = slurm.folder / "bad.sh"
    setup.write_text(text + "\n")
    settings = {"TRIAXIAL_SETUP": str(setup), "TRIAXIAL_PREFLIGHT_S": "20"}
    number = submit(slurm, "bad_node", recipe(tiny_corpus, slurm.folder, steps=100), **settings)
    wait_for(ended(slurm, number), what="the end of the job", slurm=slurm)
    assert (slurm.job(number)["JobState"], slurm.job(number)["Restarts"]) == ("FAILED", "0"), slurm.logs()
    said = (slurm.folder / f"triaxial-{number}.out").read_text()
    assert "no training: triaxial doctor or TRIAXIAL_SETUP failed on n2; see" in said
    assert said.endswith("or leave the nodes out: sbatch --exclude=n2\n")
    assert reason.replace("rank 1", "rank ") in re.sub(r"rank \d", "rank ", said), slurm.logs()
    logs = sorted((slurm.folder / f"triaxial-{number}").glob("preflight*.log"))
    assert ["no such module" in path.read_text() for path in logs] == [True, True]
    assert not (slurm.folder / "bad_node").exists()


@pytest.mark.rehearse
@pytest.mark.timeout(500)
def test_a_mistake_is_neither_queued_again_nor_tried_again(slurm, tiny_corpus):
    text = recipe(tiny_corpus, slurm.folder, steps=100).replace("vocab_size = 512", "vocab_size = 256")
    number = submit(slurm, "mistaken", text, TRIAXIAL_MAX_RESTARTS="5")
    wait_for(ended(slurm, number), what="the end of the mistaken job", slurm=slurm)
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), slurm.logs()
    logs = [path.read_text() for path in (slurm.folder / f"triaxial-{number}").glob("node*.log")]
    told = [line for log in logs for line in log.splitlines() if line.startswith("triaxial: error: model.vocab_size")]
    assert 1 <= len(told) <= 2, "once on each node that came so far"
    assert not (slurm.folder / "mistaken").exists(), "nothing was written for it"
    assert "not requeued: a person must mend it" in (slurm.folder / f"triaxial-{number}.out").read_text()


@pytest.mark.rehearse
@pytest.mark.timeout(500)
def test_a_node_that_the_verdict_blames_is_left_out_at_the_requeue(slurm, tiny_corpus):
    text = recipe(tiny_corpus, slurm.folder, steps=300).replace("every_tokens = 1_000_000_000", "every_tokens = 2048")
    number = submit(
        slurm, "blamed", text, "--nodes=1", "--overcommit", TRIAXIAL_RANKS_PER_NODE="2", TRIAXIAL_MAX_RESTARTS="0"
    )
    saved = slurm.folder / "blamed" / "checkpoints"
    wait_for(lambda: saved.is_dir() and list(saved.glob("step-*")), what="a checkpoint", slurm=slurm)
    (node,) = (slurm.job(number)["NodeList"],)
    kill_rank_1(slurm.folder / "blamed.toml")
    wait_for(ended(slurm, number), what="the end of the job", slurm=slurm)
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), slurm.logs()
    assert {node, job["NodeList"]} == {"n1", "n2"}
    assert job["ExcNodeList"] == node
    log = (slurm.folder / f"triaxial-{number}.out").read_text()
    assert f"; requeued without {node}, which the verdict blames\n" in log


@pytest.mark.rehearse
@pytest.mark.timeout(500)
def test_a_killed_rank_is_replaced_within_the_job(slurm, tiny_corpus):
    text = recipe(tiny_corpus, slurm.folder, steps=200).replace("every_tokens = 1_000_000_000", "every_tokens = 2048")
    number = submit(slurm, "killed", text, TRIAXIAL_MAX_RESTARTS="3")
    saved = slurm.folder / "killed" / "checkpoints"
    wait_for(lambda: saved.is_dir() and list(saved.glob("step-*")), what="a checkpoint", slurm=slurm)
    kill_rank_1(slurm.folder / "killed.toml")
    wait_for(ended(slurm, number), what="the end of the job", slurm=slurm)
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "0", "0:0"), slurm.logs()
    records = [json.loads(line) for line in (slurm.folder / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 201))
    assert starts_of(slurm.folder / "killed") == 2


@pytest.mark.rehearse
@pytest.mark.timeout(900)
def test_a_signal_while_nodes_start_and_a_dead_launcher_of_one_node_queue_the_job_again(slurm, tiny_corpus):
    text = recipe(tiny_corpus, slurm.folder, steps=1_000_000)
    text = text.replace("every_tokens = 1_000_000_000", f"every_tokens = {512 * 100}")
    number = submit(slurm, "requeued", text, TRIAXIAL_NODE_WAIT_S="10")
    wait_for(lambda: launchers(slurm.folder / "requeued.toml"), what="a launcher", slurm=slurm)
    slurm("scancel", "--batch", "--signal=USR1", number)  # to the script alone, as before the time limit
    wait_for(lambda: slurm.job(number)["Restarts"] == "1", what="the requeue after the signal", slurm=slurm)
    wait_for(lambda: starts_of(slurm.folder / "requeued") == 1, what="a step of the second start", slurm=slurm)
    os.kill(launchers(slurm.folder / "requeued.toml")[1], signal.SIGKILL)
    wait_for(lambda: slurm.job(number)["Restarts"] == "2", what="the requeue after the dead launcher", slurm=slurm)
    saved = [path.name for path in (slurm.folder / "requeued" / "checkpoints").glob("step-*[0-9]")]
    steps = max([int(name.removeprefix("step-")) for name in saved], default=0) + 100
    (slurm.folder / "requeued.toml").write_text(
        text.replace(f"{512 * 1_000_000}", f"{512 * steps}").replace(
            f'"{slurm.folder}/run"', f'"{slurm.folder}/requeued"'
        )
    )
    wait_for(ended(slurm, number), what="the end of the job", slurm=slurm)
    assert (slurm.job(number)["JobState"], slurm.job(number)["Restarts"]) == ("COMPLETED", "2"), slurm.logs()
    records = [json.loads(line) for line in (slurm.folder / "requeued" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, steps + 1))


def launchers(file: Path) -> dict[int, int]:
    """Process id by node of the launchers that train by this recipe now."""
    found = subprocess.run(["pgrep", "-f", f"launch.torchrun.*{file}"], capture_output=True, text=True).stdout.split()
    nodes = {}
    for pid in map(int, found):
        with contextlib.suppress(OSError):
            node = re.search(rb"\0SLURM_NODEID=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
            if node and Path(f"/proc/{pid}/comm").read_text().startswith(("python", "pt_elastic")):  # not srun
                nodes[int(node[1])] = pid
    return nodes


@pytest.mark.rehearse
@pytest.mark.timeout(300)
def test_the_elements_of_an_array_prepare_one_corpus(slurm, tmp_path):
    pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")
    names = sorted(topics)
    for number in range(4):
        lines = [json.dumps({"id": name, "text": topics[name]}) for name in names[number::4]]
        (slurm.folder / f"{number}.jsonl").write_text("\n".join(lines))
    file = slurm.folder / "corpus.toml"
    file.write_text(
        f'input.paths = ["{slurm.folder}/*.jsonl"]\noutput.folder = "{slurm.folder}/corpus"\nquality.rules = []\n'
        "output.validation_fraction = 0.2\nlanguage.enabled = false\ntokenizer.vocab_size = 400\n"
    )
    edited = ("--account=anybody", "--partition=test", "--cpus-per-task=1", "--mem-per-cpu=400M", "--array=1-2")
    setup = slurm.folder / "prepare_setup.sh"
    setup.write_text(f'[[ $# -eq 0 && -z $NOT_SET ]] || return 1\ntouch "{slurm.folder}/set_up_$SLURM_ARRAY_TASK_ID"\n')
    settings = {"TRIAXIAL_PYTHON": sys.executable, "TRIAXIAL_SETUP": str(setup), "TRIAXIAL_WRAPPER": "nice -n 1"}
    number = slurm("sbatch", "--parsable", *edited, str(PREPARE), str(file), **settings).strip()

    def is_over() -> bool:
        return not slurm("squeue", "--noheader", "--jobs", number).strip()

    wait_for(is_over, what="the end of both elements", slurm=slurm)
    states = [slurm.job(f"{number}_{element}")["JobState"] for element in (1, 2)]
    assert states == ["COMPLETED", "COMPLETED"], slurm.logs()
    assert main(["prepare", str(file), "--output.folder", str(tmp_path), "--workers", "1"]) == 0
    for name in ("corpus.json", "train.bin", "train.idx", "validation.bin", "validation.idx", "tokenizer.model"):
        assert (slurm.folder / "corpus" / name).read_bytes() == (tmp_path / name).read_bytes(), name
    for element in (1, 2):
        manifest = slurm.folder / f"corpus/work/manifest-{element}-of-2.jsonl"
        assert manifest.read_text().count('"stage": "extract"') == 2, "each element did its half"
    assert sorted(path.name for path in slurm.folder.glob("set_up_*")) == ["set_up_1", "set_up_2"]
    assert "share 2/2 is done" in (slurm.folder / f"triaxial-prepare-{number}_2.out").read_text()
