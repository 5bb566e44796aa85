"""The peak speed of a run's devices: from the table of GPUs, or measured on a CPU."""

import os
import subprocess
import sys

import pytest
import torch

from gpt.errors import ConfigError
from launch.config.run_config import RunSection
from launch.training.hardware import check_capability, missing_peak, n_cores, peak_flops_per_s, prepare_gpu_libraries


@pytest.mark.parametrize(
    ("name", "bf16", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989e12),
        ("NVIDIA H100 PCIe", True, 756e12),  # the longest matching name of the table
        ("NVIDIA H100 NVL", True, 835e12),
        ("NVIDIA H200", True, 989e12),
        ("NVIDIA B200", True, 2250e12),
        ("NVIDIA GB200", True, 2500e12),
        ("NVIDIA L40S", True, 362e12),
        ("NVIDIA L40", True, 181e12),
        ("AMD Instinct MI300X", True, 1307e12),
        ("NVIDIA A100-SXM4-80GB", True, 312e12),
        ("NVIDIA A10G", True, 70e12),
        ("NVIDIA H100 80GB HBM3", False, 0.0),  # fp32 depends on TF32 settings
        ("some GPU of tomorrow", True, 0.0),
    ],
)
def test_a_gpus_peak_comes_from_the_table_times_the_number_of_devices(monkeypatch, name, bf16, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_flops_per_s(torch.device("cuda"), bf16=bf16, world_size=16, local_world_size=8)
    assert found == 16 * peak


def test_variables_of_nccl_come_from_the_recipe_unless_they_are_set(monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_IB_HCA", "mine")
    monkeypatch.setenv("NCCL_MIN_CTAS", "")  # so that its value after this test is the one before
    monkeypatch.delenv("NCCL_MIN_CTAS")
    (warning,) = prepare_gpu_libraries(RunSection(tmp_path, nccl={"NCCL_IB_HCA": "mlx5", "NCCL_MIN_CTAS": "8"}))
    assert "run.nccl.NCCL_IB_HCA = 'mlx5' is not used: the ranks' environment has NCCL_IB_HCA=mine" in warning
    assert (os.environ["NCCL_IB_HCA"], os.environ["NCCL_MIN_CTAS"]) == ("mine", "8")
    with pytest.raises(ConfigError, match=r"run.nccl.LD_PRELOAD is invalid: not a variable of NCCL. Use names that"):
        RunSection(tmp_path, nccl={"LD_PRELOAD": "x.so"})
    with pytest.raises(ConfigError, match=r"run.nccl.NCCL_IB=HCA is invalid: not a variable of NCCL"):
        RunSection(tmp_path, nccl={"NCCL_IB=HCA": "mlx5"})
    with pytest.raises(ConfigError, match=r"run.nccl.NCCL_IB_HCA is invalid: no variable can hold a NUL character"):
        RunSection(tmp_path, nccl={"NCCL_IB_HCA": "mlx5\0"})


def test_fp8_is_refused_on_gpus_without_it():
    for capability in ((8, 9), (9, 0), (10, 0)):
        check_capability("fp8", capability)
    with pytest.raises(ConfigError, match=r"needs compute capability 8.9 or above, and the GPU has 8.0. Use"):
        check_capability("fp8", (8, 0))
    check_capability("bf16", (8, 0))


def test_a_gpu_without_a_peak_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
    assert "the peak of 'GPU X' in the run's precision is not known. Set run.peak_flops_per_s" in missing_peak(None)


def test_a_cpus_peak_is_measured_once_a_node_and_keeps_the_number_of_threads():
    before = torch.get_num_threads()
    one_node = peak_flops_per_s(torch.device("cpu"), bf16=False, world_size=4, local_world_size=4)
    assert one_node > 1e8
    assert torch.get_num_threads() == before


def test_hardware_threads_of_a_core_count_once():
    assert 1 <= n_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.gpu
def test_a_process_without_a_launcher_has_an_allocator_that_grows_its_segments():
    program = (
        "import torch; from launch.config.run_config import read_run_config; "
        "from launch.processes.environment import ClusterEnvironment; from launch.training.build import pick_device; "
        "pick_device(read_run_config('demo', []), ClusterEnvironment()); x = torch.zeros(1000, device='cuda'); "
        "print([segment['is_expandable'] for segment in torch.cuda.memory_snapshot()])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTORCH_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[True]", done.stderr
