"""Read torchrun's and Slurm's variables, and set those of torch's libraries."""

import os
import subprocess
import sys

import pytest

from gpt.errors import ConfigError
from launch.processes import environment

TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_a_plain_process_is_rank_0_of_1(monkeypatch):
    for name in (*TORCHRUN_NAMES, "SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "TRIAXIAL_SAVED_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert environment.ClusterEnvironment.from_environment() == environment.ClusterEnvironment()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 is invalid: must be below WORLD_SIZE = 2"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK = 'one'"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 tasks"),
    ],
)
def test_an_incomplete_environment_is_rejected(monkeypatch, settings, said):
    for name in TORCHRUN_NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        environment.ClusterEnvironment.from_environment()


def test_libraries_are_made_deterministic_and_the_users_settings_are_kept(monkeypatch):
    for name in environment.DETERMINISTIC_SETTINGS:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what is set below
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    environment.make_libraries_deterministic()
    assert (os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_ALGO"]) == (":4096:8", "Ring")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG = ':0:0' lets cuBLAS give other bits each time"):
        environment.make_libraries_deterministic()


def test_the_allocator_of_gpus_grows_its_segments_unless_the_user_chose(monkeypatch, tmp_path):
    def found(**variables):
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return environment.rank_environment(2, None, saved_file=tmp_path).get("PYTORCH_ALLOC_CONF")

    assert found() == "expandable_segments:True"
    assert found(PYTORCH_ALLOC_CONF="max_split_size_mb:64") == "max_split_size_mb:64"
    assert found(PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:64") is None


def test_a_launcher_of_ranks_does_not_wait_for_torch(tmp_path):
    program = (
        "import sys, pathlib, launch.commands.train; from launch.processes.environment import rank_environment; "
        "rank_environment(2, None, saved_file=pathlib.Path('saved')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_an_element_of_a_slurm_array_is_a_share(monkeypatch):
    for name in ("ID", "MIN", "MAX", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_ID is not set"):
        environment.slurm_array_share()

    def array(number, first, last, count):
        for name, value in (("ID", number), ("MIN", first), ("MAX", last), ("COUNT", count)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        return environment.slurm_array_share()

    assert array(3, 1, 8, 8) == (3, 8)
    for elements in ((3, 3, 3, 1), (0, 0, 7, 8), (5, 1, 9, 5)):
        with pytest.raises(ConfigError, match=rf"must be 1 to N\. .* --share {elements[0]}/N"):
            array(*elements)


def test_ranks_of_one_machine_stay_on_loopback_unless_the_user_names_an_interface(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", *environment.RESTART_SETTINGS):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what is set below
        monkeypatch.delenv(name)
    monkeypatch.setenv(environment.JOB_SECRET, "before")
    environment.set_for_ranks({environment.JOB_SECRET: "the secret"}, one_node=False)
    assert environment.job_secret() == "the secret"
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    environment.set_for_ranks({}, one_node=True)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth1", "=lo")


def test_a_ray_cluster_is_joined_only_if_it_is_named(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert environment.ray_cluster("head:6379") == "head:6379"
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert environment.ray_cluster(None) == "other:6379"
    assert "RAY_AUTH_MODE" not in os.environ, "the user's cluster, the user's settings"
    monkeypatch.delenv("RAY_ADDRESS")
    assert environment.ray_cluster(None) is None
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
