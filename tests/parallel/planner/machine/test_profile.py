"""The profile's file: written and read, refused if damaged or of another version; machines that differ."""

import json
from dataclasses import replace

import pytest
from made_profile import made_profile

from gpt.errors import ConfigError
from parallel.planner.machine.profile import (
    MachineIdentity,
    difference,
    is_profile,
    model_of,
    read_profile,
    write_profile,
)

HERE = MachineIdentity("AMD EPYC", "AVX512", 2, "2.13.0+cpu")


def test_a_profile_comes_back_from_its_file(tmp_path):
    profile = made_profile(HERE)
    write_profile(tmp_path / "profile.json", profile)
    found = read_profile(tmp_path / "profile.json")
    assert found.machine == HERE
    assert found.precisions == ("fp32",)
    assert [each.threads for each in found.by_ranks] == [2, 1]
    for mine, read in zip(profile.by_ranks, found.by_ranks, strict=True):
        assert len(read.samples) == len(mine.samples)
        assert read.samples[-1].step == pytest.approx(mine.samples[-1].step, rel=1e-4)
        assert read.samples[-1].split == mine.samples[-1].split
    assert is_profile(tmp_path / "profile.json")
    assert not is_profile(tmp_path)


def test_a_damaged_file_or_another_version_is_one_line(tmp_path):
    path = tmp_path / "profile.json"
    write_profile(path, made_profile(HERE))
    table = json.loads(path.read_text())
    no_time = {**table["by_ranks"][0]["products"][0], "seconds": 0.0}
    for change, words in (
        ({"schema": 1}, "is a profile of version 1, and this program reads version 2"),
        ({"machine": {}}, r"damaged: machine\.cpu is missing"),
        ({"by_ranks": [{**table["by_ranks"][0], "ranks": -1}]}, r"by_ranks\[0\]\.ranks = -1"),
        ({"by_ranks": [{**table["by_ranks"][0], "products": [no_time]}]}, r"products\[0\]\.seconds = 0\.0"),
        ({"by_ranks": [{**table["by_ranks"][0], "samples": []}]}, "its table 'samples' of 1 ranks is empty"),
    ):
        path.write_text(json.dumps({**table, **change}))
        with pytest.raises(ConfigError, match=words) as caught:
            read_profile(path)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(ConfigError, match="no valid JSON"):
        read_profile(path)
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_profile(tmp_path / "missing.json")


def test_the_difference_between_machines_is_named():
    assert difference(HERE, HERE) is None
    assert difference(HERE, replace(HERE, cpu="Intel Xeon")) == "the CPU was AMD EPYC and is Intel Xeon here"
    assert difference(HERE, replace(HERE, cores=4)) == "the number of cores was 2 and is 4 here"
    assert difference(HERE, replace(HERE, torch="2.14.0")) == "torch was 2.13.0+cpu and is 2.14.0 here"
    with_gpu = replace(HERE, gpu="NVIDIA H100", gpus=1)
    assert difference(with_gpu, HERE) == "the GPU was NVIDIA H100 and is none here"


def test_both_styles_of_model():
    assert model_of("gpt3", 128, 2, 2, 512, 64).positions == "learned"
    modern = model_of("llama", 128, 2, 2, 512, 64)
    assert (modern.norm, modern.activation, modern.d_ff) == ("rmsnorm", "swiglu", 384)
