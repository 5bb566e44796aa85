"""The shipped tables, a user's file, and faults in it."""

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import find, find_gpu, read_hardware, taken_as


def test_the_shipped_tables():
    found = read_hardware()
    for name in ("A100-40G", "A100-80G", "H100", "H100-PCIe", "H100-NVL", "H200", "B200", "GB200", "L40S", "MI300X"):
        gpu = found.gpus[name]
        assert gpu.network in found.networks
        assert 0 < gpu.best <= 1
        assert gpu.memory_bytes > 39 * 2**30
    assert find("GPU", "h100-sxm", found.gpus).name == "H100"
    assert found.stacks["triaxial"].attention == "fused"
    with pytest.raises(ConfigError, match="no fp8"):
        found.gpus["A100-80G"].product_flops_per_s("fp8")


def test_fp32_products_stay_below_the_gpus_fp32_peak():
    for gpu in read_hardware().gpus.values():
        assert 0.45 * gpu.peak_fp32 < gpu.product_flops_per_s("fp32") / 1e12 < gpu.peak_fp32 < gpu.peak / 3
    without = replace(read_hardware().gpus["H100"], peak_fp32=None)
    assert without.product_flops_per_s("fp32") == pytest.approx(without.product_flops_per_s("bf16") / 16)


def test_unknown_names_give_the_nearest():
    with pytest.raises(ConfigError, match="GPU 'H10O' is unknown: did you mean 'H100'"):
        find("GPU", "H10O", read_hardware().gpus)
    with pytest.raises(ConfigError, match=r"'Z9' is unknown: use one of A100.*MI300X\. Add others with"):
        find("GPU", "Z9", read_hardware().gpus)


def test_a_user_extends_the_tables(tmp_path):
    path = tmp_path / "more.toml"
    path.write_text('[networks.slow]\ngb_per_s = 1\nnode = 4\nlatency_us = 500\n[stacks.mine]\nabout = "mine"\n')
    found = read_hardware(path)
    assert found.networks["slow"].node == 4
    assert found.stacks["mine"].about == "mine"
    for text, words in (
        ("[gpu.x]\npeak = 1", r"\[gpu\] is invalid"),
        ("[H100]\npeak = 1\nbest = 0.8", r"\[H100\] is invalid: a table is .*\. Use \[gpus\.H100\]$"),
        ("[slow]\ngb_per_s = 1", r"Use \[networks\.slow\]$"),
        ("[gpus.x]\npeak = 1", r"more\.toml: gpus\.x is invalid: best, .* are missing\. Add them"),
        ("[networks.slow]\ngb_per_s = -1\nnode = 4\nlatency_us = 5", "gb_per_s = -1 is invalid"),
        ("[networks.slow]\nnode = 4\nlatency_us = 5", "gb_per_s is missing"),
        ("[networks.slow]\ngb_per_second = 4", "unknown key; did you mean 'gb_per_s'"),
        ("networks = 3", "networks is invalid"),
        (
            "[networks.slow]\ngb_per_s = 1\nnode = 8.5\nlatency_us = 5",
            r"node = 8\.5 is invalid: must be a whole number",
        ),
        (
            "[networks.slow]\ngb_per_s = 1\nnode = 8\nlatency_us = 5\nnames = 'x'",
            "names = 'x' is invalid: must be a list",
        ),
        (f"[networks.slow]\ngb_per_s = {10**400}\nnode = 8\nlatency_us = 5", "must be a number from 1e-09 to 1e"),
        ("[gpus.x]\nnetwork = 3", "network = 3 is invalid: must be a text"),
        ("[gpus.x]\nbest = 80", "best = 80 is invalid: must be a number from 1e-09 to 1"),
        ("[stacks.x]\nattention = 'flash'", "must be one of fused, unfused"),
        ("[stacks.x]\noverlap_tensor = 1", "must be true or false"),
        (f"networks = {'[' * 100_000}", "nested too deeply"),
        ("[", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_hardware(path)
    with pytest.raises(ConfigError, match="no such hardware file"):
        read_hardware(tmp_path / "none.toml")


def test_gpus_by_the_names_of_drivers_and_papers():
    gpus = read_hardware().gpus
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA A100-SXM4-40GB": "A100-40G",
        "a100_80gb": "A100-80G",
        "DGX-H100": "H100",
        "H100 PCIe": "H100-PCIe",
        "NVIDIA H100 NVL": "H100-NVL",
        "AMD Instinct MI300X": "MI300X",
        "GB200 NVL72": "GB200",
        "H100-96G(500W,HBM2e)": "H100-500W",
    }
    assert {name: find_gpu(name, gpus).name for name in names} == names
    with pytest.raises(ConfigError, match="GPU 'H1000' is unknown: did you mean"):
        find_gpu("H1000", gpus)


def test_a_name_of_several_variants_says_which_one_is_taken():
    gpus = read_hardware().gpus
    note = taken_as("A100", find_gpu("A100", gpus), gpus)
    assert note == "A100 is taken as A100-80G (79.2 GiB); there is also A100-40G (39.4 GiB)"
    for name in ("A100-40G", "A100-SXM4-80GB", "H100", "B200"):
        assert taken_as(name, find_gpu(name, gpus), gpus) == ""


def test_the_guides_example_is_a_hardware_file(tmp_path):
    guide = (Path(__file__).parents[4] / "docs" / "guides" / "training" / "planning.md").read_text(encoding="utf-8")
    start = guide.index("    [gpus.H20]")
    path = tmp_path / "ours.toml"
    path.write_text(dedent(guide[start : guide.index("\n## ", start)]))
    found = read_hardware(path)
    assert found.gpus["H20"].network == "ours"
    assert found.networks["ours"].gb_per_s == 25
