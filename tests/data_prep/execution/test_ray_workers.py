"""A real Ray cluster of two nodes on this machine: a node killed in mid-run, mistakes as one line, a folder apart."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.execution.progress import ProgressBars
from data_prep.execution.ray_workers import RayWorkers
from data_prep.execution.tasks import Stage, Task
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytestmark = [pytest.mark.rehearse, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
CORPUS_FILES = ("corpus.json", "tokenizer.model", "train.bin", "train.idx", "validation.bin", "validation.idx")
STORE_BYTES = 80 << 20

FUNCTIONS = """
import os, time
from pathlib import Path
from dataclasses import dataclass
import ray
from data_prep.execution.tasks import TaskResult
from gpt.errors import ConfigError


@dataclass(frozen=True)
class Config:
    log: Path


def slow_copy(config, inputs, outputs):
    node = ray.get_runtime_context().get_node_id()
    with open(config.log, "a") as log:
        log.write(f"{inputs[0].name} {node}\\n")
    outputs[0].write_bytes(b"half")
    time.sleep(1.5)
    outputs[0].write_bytes(b"copy of " + inputs[0].read_bytes())
    return TaskResult([], {"node": node})


def mistake(config, inputs, outputs):
    raise ConfigError("the setting is wrong")


def bug(config, inputs, outputs):
    raise ValueError("a bug")


def exit_at_once(config, inputs, outputs):
    os._exit(3)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """The stage functions, where this process and all nodes find them."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "ray_stage_functions.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
        patch.syspath_prepend(str(folder))
        import ray_stage_functions

        yield ray_stage_functions
        del sys.modules["ray_stage_functions"]


@pytest.fixture(scope="module")
def cluster(functions):
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def second_node(cluster):
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def run(folder, function, sources, cluster, log):
    def executor(n_workers):
        return RayWorkers(n_workers, folder=folder, address=cluster.address)

    quiet = ProgressBars(Console(quiet=True))
    with Workspace(folder, n_workers=None, progress=quiet, executor=executor) as workspace:
        stage = Stage("copy", function)
        tasks = [
            Task(sys.modules["ray_stage_functions"].Config(log), (path,), (workspace.folder / "copy" / path.name,))
            for path in sources
        ]
        return workspace.run(stage, tasks)


def test_a_node_that_dies_costs_no_task(tmp_path, cluster, second_node, functions):
    sources = [tmp_path / f"{n:02}.in" for n in range(10)]
    for path in sources:
        path.write_text(path.name)
    log = tmp_path / "log"

    def kill():
        while not log.exists() or log.read_text().count(second_node.node_id) < 2:
            time.sleep(0.02)
        cluster.remove_node(second_node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    finished = run(tmp_path / "w", functions.slow_copy, sources, cluster, log)
    killer.join()
    assert [(tmp_path / "w/copy" / path.name).read_text() for path in sources] == [f"copy of {p.name}" for p in sources]
    started = [line.split()[0] for line in log.read_text().splitlines()]
    assert len(started) > len(set(started)) == 10, "the killed node's task was not started again"
    nodes = {task.facts["node"] for task in finished}
    assert second_node.node_id in nodes
    assert len(nodes) == 2
    assert list((tmp_path / "w").rglob("*tmp*")) == list((tmp_path / "w").glob(".ray*")) == []


def test_mistakes_are_one_line(tmp_path, cluster, second_node, functions):
    source = tmp_path / "a.in"
    source.write_text("a")
    with pytest.raises(ConfigError, match=r"^the setting is wrong$"):
        run(tmp_path / "w", functions.mistake, [source], cluster, tmp_path)
    with pytest.raises(RuntimeError, match="ValueError: a bug"):
        run(tmp_path / "w", functions.bug, [source], cluster, tmp_path)
    with pytest.raises(ConfigError, match=r"^stage 'copy' of a\.in: its Ray worker was lost 4 times, .*WorkerCrashed"):
        run(tmp_path / "w", functions.exit_at_once, [source], cluster, tmp_path)
    assert list((tmp_path / "w/copy").iterdir()) == []
    (tmp_path / "only_here.py").write_text("def function(job):\n    return job\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        import only_here

        workers = RayWorkers(None, folder=tmp_path, address=cluster.address)
        with pytest.raises(ConfigError, match=r"^1: No module named 'only_here' on one of Ray's machines\. Install"):
            list(workers.run(only_here.function, [1]))
        workers.close()
    nowhere = RayWorkers(None, folder=tmp_path, address="127.0.0.1:1")
    with pytest.raises(
        ConfigError, match=r"^--ray-address: cannot join the Ray cluster at 127\.0\.0\.1:1 \(.*\)"
    ) as caught:
        list(nowhere.run(str, [1]))
    with pytest.raises(ConfigError, match="must be HOST:PORT of the cluster's head"):
        list(RayWorkers(None, folder=tmp_path, address="ray://head:10001").run(str, [1]))
    assert "\n" not in str(caught.value)


def test_a_node_without_the_folder_is_named(tmp_path, cluster, functions):
    """A node in a mount namespace of its own, in which something else lies over the work folder."""
    work = tmp_path / "w"
    work.mkdir()
    (tmp_path / "a.in").write_text("a")
    script = f"mount -t tmpfs tmpfs {work} && exec {sys.executable} -m ray.scripts.scripts start --block --num-cpus=1"
    words = f" --address={cluster.address} --object-store-memory={STORE_BYTES}"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"cannot make a mount namespace here: {probe.stderr.decode().strip()}")
    node = subprocess.Popen(
        ["unshare", "--mount", "--kill-child", "--fork", "sh", "-c", script + words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        while sum(each["Alive"] for each in ray.nodes()) < 2:
            assert time.monotonic() < deadline, "the second node did not come"
            time.sleep(0.2)
        ray.shutdown()
        with pytest.raises(
            ConfigError, match=rf"^output\.work = {work} is invalid: Ray's node .* does not see this folder"
        ) as caught:
            run(work, functions.slow_copy, [tmp_path / "a.in"], cluster, tmp_path / "log")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "log").exists(), "no task began"
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{node.pid}"], check=False)
        node.wait()


def test_a_corpus_made_by_ray_has_the_bytes_of_a_local_one(tmp_path, cluster, second_node, prose):
    for number in range(8):
        lines = [{"id": f"{number}-{n}", "text": prose(100 * number + n, 8)} for n in range(30)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'input.paths = ["{tmp_path}/*.jsonl"]\noutput.folder = "{tmp_path}/unset"\noutput.validation_fraction = 0.2\n'
        'quality.rules = ["gopher_quality"]\ntokenizer.vocab_size = 500\n'
    )
    command = [sys.executable, "-m", "launch.main", "prepare", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    local = [*command, "--output.folder", f"{tmp_path}/local", "--workers", "1"]
    subprocess.run(local, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120)
    by_ray = [*command, "--output.folder", f"{tmp_path}/ray", "--executor", "ray", "--ray-address", cluster.address]
    process = subprocess.Popen(by_ray, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    manifest = tmp_path / "ray/work/manifest.jsonl"
    while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b'"key"') < 10):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1].decode()
    cluster.remove_node(second_node, allow_graceful=False)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out.decode() + err.decode()
    for name in CORPUS_FILES:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


WITHOUT_HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from data_prep.execution import ray_workers

ray_workers._HEAD_CHECK_S, ray_workers._HEAD_LIMIT_S = 0.5, 2.0
workers = ray_workers.RayWorkers(1, folder=Path(sys.argv[1]))
try:
    for _ in workers.run(time.sleep, [0, 600], name=str):
        head = f"gcs_server.*{workers._own_folder}"
        os.kill(int(subprocess.run(["pgrep", "-f", head], capture_output=True, check=True).stdout), signal.SIGKILL)
except ray_workers.MachineFault as error:
    print(error)
finally:
    workers.close()
    os._exit(0)  # Ray's own threads would wait for the head
"""


def test_a_head_that_dies_is_named(tmp_path, functions):
    """Ray itself would end the process after a minute, with its own message."""
    command = [sys.executable, "-c", WITHOUT_HEAD, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "the head of the Ray cluster at" in said
    assert "has gone (Connection refused)" in said
