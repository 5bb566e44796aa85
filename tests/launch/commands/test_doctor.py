"""`triaxial doctor` on this machine, and its warnings and problems for machines that lack something."""

import dataclasses
import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch.commands import doctor
from launch.engines.installed import EngineFacts
from launch.processes.machine_facts import Device, Facts, Package, collect, filesystem_of

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "launch.main", "doctor"]


OLD = EngineFacts(
    "deepspeed", "deepspeed", "0.18.0", "computed wrong gradients", ">=0.19.6", "deepspeed", ("cpu", "cuda")
)


@pytest.fixture(scope="module")
def here() -> Facts:
    return collect()


def test_this_machine_has_no_problems(here):
    assert doctor.problems_of(here) == []


def test_the_command_prints_plain_lines_in_a_pipe_and_succeeds():
    result = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(": " in line or line.startswith("training can run here") for line in lines)
    assert lines[-1].startswith("training can run here")
    assert not any(character in result.stdout for character in "│┃\x1b")


def test_the_command_prints_a_table_on_a_terminal():
    terminal, child_end = pty.openpty()
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=child_end, env={**os.environ, "TERM": "xterm"})
    os.close(child_end)
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # the command has closed the terminal
            break
    assert process.wait(timeout=60) == 0
    assert "│" in said.decode()
    assert b"training can run here" in said


def test_json_holds_the_same_facts():
    result = subprocess.run([*COMMAND, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert set(report["facts"]) == {field.name for field in dataclasses.fields(Facts)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shm_bytes": 2**20}, "/dev/shm has 1 MiB"),
        ({"disk_free_bytes": 2**30}, "1.0 GiB free on this disk"),
        ({"memory_free_bytes": 2**31}, "2.0 GiB of memory free"),
        ({"load": 9.04, "cores": 2}, "other programs keep the 2 cores busy (load 9.0)"),
        ({"open_files": 256}, "ulimit -n 65536"),
        ({"compiler": None}, "no C++ compiler: parallel.compile = true will fail"),
        ({"python_headers": False, "compiler": "/usr/bin/g++"}, "no Python headers: parallel.compile"),
        ({"settings": {"OMP_NUM_THREADS": "64"}, "cores": 2}, "OMP_NUM_THREADS = 64 is above the 2 cores"),
        ({"gpus": (Device("A", 2**34, True),), "backends": ("gloo",)}, "this torch has no NCCL"),
        ({"gpus": (Device("A", 2**34, False),)}, "has no bf16"),
        (
            {"gpus": (Device("A", 2**34, True),), "links": {"infiniband": "mlx5_0 ACTIVE 400 Gb/sec"}},
            "only 64 KiB of memory may be locked",
        ),
        ({"gpus": (), "torch_build": "CUDA 13.0"}, "sees no GPU"),
        ({"links": {"gpu clocks": "GPU 0: 345 of 1980 MHz (slowed by heat or power)"}}, "Look at its cooling"),
        ({"engines": (OLD,)}, 'deepspeed 0.18.0 computed wrong gradients: parallel.engine = "deepspeed" is refused'),
        ({"stale_locks": ("/cache/a b/lock",)}, "rm '/cache/a b/lock'"),
    ],
)
def test_a_fact_that_would_break_some_runs_is_a_warning(here, change, said):
    sound = dataclasses.replace(
        here,
        shm_bytes=2**34,
        disk_free_bytes=2**40,
        memory_free_bytes=2**36,
        open_files=4096,
        compiler="/usr/bin/g++",
        python_headers=True,
        settings={},
        limits={"locked memory": "64 KiB"},
        links={},
        gpus=(),
        torch_build="CPU only",
        backends=("gloo", "nccl"),
        engines=(),
        stale_locks=(),
        load=0.5,
    )
    assert doctor.warnings_of(sound) == []
    changed = dataclasses.replace(sound, **change)
    warnings = doctor.warnings_of(changed)
    assert len(warnings) == 1
    assert said in warnings[0]
    assert doctor.problems_of(changed) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": None, "torch_build": "cannot be imported: no libgomp"}, "no libgomp. Install it: pip install torch"),
        ({"backends": ()}, "ranks cannot talk"),
        ({"folder_writable": False}, "is not writable"),
        ({"packages": ()}, "not installed in this Python"),
        ({"packages": (Package("numpy", "1.26", "", None),)}, "missing: numpy. Install: pip install numpy"),
        ({"packages": (Package("torch", "2.11", "", "2.9.1"),)}, "torch 2.9.1 is older than 2.11"),
    ],
)
def test_a_fact_that_prevents_training_is_a_problem(here, change, said):
    problems = doctor.problems_of(dataclasses.replace(here, **change))
    assert len(problems) == 1
    assert said in problems[0]


def test_a_missing_extra_is_shown_with_its_pip_line(here):
    missing = Package("fastwarc", "0.15", "data", None)
    present = Package("pyarrow", "17", "data", "26.0")
    rows = dict(doctor.lines_of(dataclasses.replace(here, packages=(missing, present))))
    assert rows["extra [data]"] == f"pyarrow 26.0; missing fastwarc: pip install -e '{ROOT}[data]'"


def test_developers_extras_are_not_shown(here):
    rows = dict(doctor.lines_of(here))
    assert "extra [data]" in rows
    assert not {"extra [dev]", "extra [benchmarks]"} & rows.keys()


def test_the_machine_and_its_folder_are_shown(here, tmp_path, monkeypatch):
    rows = dict(doctor.lines_of(dataclasses.replace(here, links={"gpu driver": "570.1", "nvlink": "NV18"})))
    assert (rows["gpu driver"], rows["nvlink"]) == ("570.1", "NV18")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert rows["limits"].startswith(f"open files {soft:,}, processes ")
    assert (
        rows["folder"] == f"{Path.cwd()} on {here.filesystem}, {'shared' if here.folder_shared else 'of this machine'}"
    )
    assert filesystem_of(Path("/dev/shm")) == "tmpfs"
    assert filesystem_of(Path("/proc/self")) == "proc"


def test_each_engine_has_a_row_with_its_version_or_what_it_lacks(here):
    here = dataclasses.replace(here, torch="2.13.0", gpus=())
    gpu = dataclasses.replace(here, gpus=(Device("A", 2**34, True),))
    native = EngineFacts("native", None, None, None, ">=0", "", ("cpu", "cuda"))
    megatron = EngineFacts("megatron", "megatron-core", "0.16.1", None, ">=0.16,<0.17", "megatron", ("cuda",))
    assert doctor.engine_text(native, here) == "torch 2.13.0, on cpu"
    assert doctor.engine_text(OLD, here) == "deepspeed 0.18.0 computed wrong gradients; it needs >=0.19.6"
    assert doctor.engine_text(megatron, here) == "megatron-core 0.16.1, but there is no GPU: it runs on cuda only"
    assert doctor.engine_text(megatron, gpu) == "megatron-core 0.16.1, on cuda"
    missing = dataclasses.replace(megatron, version=None)
    assert doctor.engine_text(missing, gpu) == f"missing megatron-core: pip install -e '{ROOT}[megatron]'"
    rows = dict(doctor.lines_of(dataclasses.replace(here, engines=(native, OLD))))
    assert rows["engine native"] == "torch 2.13.0, on cpu"


def test_the_attention_kernels_of_each_generation_are_shown(here):
    gpus = (Device("H", 2**36, True, (9, 0)), Device("H", 2**36, True, (9, 0)), Device("A", 2**36, True, (8, 0)))
    found = [text for name, text in doctor.lines_of(dataclasses.replace(here, gpus=gpus)) if name == "attention"]
    assert found == [
        "FlashAttention, then cuDNN, then memory-efficient attention, then plain products (compute capability 8.0)",
        "cuDNN, then FlashAttention, then memory-efficient attention, then plain products (compute capability 9.0)",
    ]
    on_a_cpu = dict(doctor.lines_of(dataclasses.replace(here, gpus=())))["attention"]
    assert on_a_cpu == "torch's kernel for a CPU; parallel.attention is for GPUs"
