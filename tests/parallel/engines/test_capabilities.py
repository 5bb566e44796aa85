"""The capabilities of engines: what is refused, in which words, without importing an engine's package."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pkgutil import resolve_name

import pytest

from gpt.errors import ConfigError, install_command
from gpt.training.config import NextTokenConfig
from launch.config.run_config import RunConfig
from launch.config.settings import settings_of
from parallel.engines.capabilities import (
    ALL,
    DEEPSPEED,
    MEGATRON,
    NATIVE,
    EngineRule,
    capabilities_of,
    check_engine,
    check_engine_device,
    check_installed,
    release,
    version_fault,
)
from parallel.engines.choose import ENGINES
from parallel.layout.config import ParallelConfig


def message_of(parallel, **sections):
    with pytest.raises(ConfigError) as error:
        check_engine(parallel, **sections)
    return str(error.value)


def test_the_native_engine_takes_everything():
    check_engine(ParallelConfig(tensor=2, pipeline=2, schedule="zbv_zero_bubble", zero_stage=3, offload=True))
    assert NATIVE.rules == ()


@pytest.mark.parametrize("capabilities", ALL, ids=lambda each: each.engine)
def test_each_rule_names_keys_of_the_recipe(capabilities):
    """A key with a typing mistake would never be checked."""
    known = {setting.key for setting in settings_of(RunConfig)}
    for rule in capabilities.rules:
        assert {rule.key, *([rule.when[0]] if rule.when else [])} <= known, rule


def test_the_message_names_the_key_the_rule_and_the_nearest_layout():
    parallel = ParallelConfig(engine="deepspeed", tensor=2, pipeline=2, data=3, zero_stage=0)
    assert message_of(parallel) == (
        'parallel.tensor = 2 is invalid with parallel.engine = "deepspeed": '
        "ZeRO's flat tensors cannot hold the shards of tensor ranks. "
        "Use parallel.tensor = 1 and parallel.data = 6 and parallel.zero_stage = 1, or "
        'parallel.engine = "native"'
    )
    check_engine(ParallelConfig(engine="deepspeed", pipeline=2, data=6, zero_stage=1))
    assert "zero_stage = 1" in message_of(ParallelConfig(engine="deepspeed", pipeline=2, zero_stage=3))
    assert 'schedule = "1f1b"' in message_of(ParallelConfig(engine="deepspeed", pipeline=2, schedule="dualpipev"))
    assert "zero_stage = 1" in message_of(ParallelConfig(engine="megatron", zero_stage=3, data=2))


def test_a_rule_with_a_condition_holds_only_then():
    parallel = ParallelConfig(engine="megatron", schedule="gpipe")
    check_engine(parallel)
    message = message_of(replace(parallel, pipeline=2))
    assert message.startswith('parallel.schedule = "gpipe" is invalid with parallel.engine = "megatron"')
    assert 'Use parallel.schedule = "1f1b", or' in message


def test_rules_of_other_sections_hold_when_the_section_is_given():
    parallel = ParallelConfig(engine="megatron")
    check_engine(parallel, objective=NextTokenConfig())
    assert 'objective.kind = "classes" is invalid' in message_of(parallel, objective=Classes())
    check_engine(parallel, objective=None)


@dataclass(frozen=True)
class Classes:
    kind: str = "classes"


def test_devices():
    check_engine_device(ParallelConfig(engine="deepspeed"), "cpu")
    with pytest.raises(ConfigError, match=r'engine = "megatron" with device "cpu" is invalid: .* on cuda only'):
        check_engine_device(ParallelConfig(engine="megatron"), "cpu")


@pytest.mark.parametrize(
    ("capabilities", "version", "fault"),
    [
        (DEEPSPEED, "0.19.6", None),
        (DEEPSPEED, "0.19.9+cu130", None),
        (DEEPSPEED, "0.20.0", "is not older than 0.20"),
        (DEEPSPEED, "0.19.5", "is older than 0.19.6"),
        (DEEPSPEED, "0.18.2", "computed wrong gradients (releases 0.17.6 to 0.19.3)"),
        (DEEPSPEED, "0.17.5", "is older than 0.19.6"),
        (MEGATRON, "0.16.0", None),
        (MEGATRON, "0.16.1", None),
        (MEGATRON, "0.17.0", "is not older than 0.17"),
        (MEGATRON, "0.15.3", "is older than 0.16"),
    ],
)
def test_versions(capabilities, version, fault):
    assert version_fault(capabilities, version) == fault


def test_release_numbers():
    assert release("0.19.0+cpu") == release("0.19") == (0, 19)
    assert release("0.16.0rc1") == (0, 16)
    assert release("2.10") > release("2.9.1")
    assert release("unknown") == ()


def installed(folder, name, version):
    """A folder with the metadata of an installed package and nothing to import."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_the_installed_version_is_read_without_an_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(tmp_path / "old", "deepspeed", "0.18.0"))
    with pytest.raises(ConfigError) as error:
        check_installed("deepspeed")
    assert str(error.value) == (
        'parallel.engine = "deepspeed" is invalid here: deepspeed 0.18.0 computed wrong gradients (releases 0.17.6 to '
        f"0.19.3). Use deepspeed >=0.19.6,<0.20: {install_command('deepspeed')}"
    )
    monkeypatch.syspath_prepend(installed(tmp_path / "new", "deepspeed", "0.19.8"))
    check_installed("deepspeed")
    check_installed("native")


def test_a_missing_package_names_the_pip_line():
    program = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p];"
        "from parallel.engines.capabilities import check_installed; check_installed('deepspeed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "the package 'deepspeed' is not installed" in last
    assert install_command("deepspeed") in last


def test_nothing_is_imported():
    program = (
        "import sys, parallel.engines.capabilities;"
        "print([m for m in ('torch', 'deepspeed', 'megatron', 'parallel.engines.native') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_suggestion_obeys_all_rules():
    rule = EngineRule("parallel.recompute", ("none", "full"), "a reason")
    assert capabilities_of("deepspeed") is DEEPSPEED
    for capabilities in ALL:
        assert rule not in capabilities.rules
    for engine in ("deepspeed", "megatron"):
        parallel = ParallelConfig(engine=engine, tensor=2, pipeline=2, data=2, schedule="gpipe", zero_stage=3)
        message = message_of(parallel)
        changes = dict(part.split(" = ") for part in message.split("Use ")[1].split(", or ")[0].split(" and "))
        values = {key.removeprefix("parallel."): value.strip('"') for key, value in changes.items()}
        fixed = {key: int(value) if value.isdigit() else value for key, value in values.items()}
        check_engine(replace(parallel, **fixed))
        assert replace(parallel, **fixed).data * fixed.get("tensor", 2) * fixed.get("pipeline", 2) == 8


@pytest.mark.parametrize("capabilities", ALL, ids=lambda each: each.engine)
def test_each_engine_states_its_own(capabilities):
    named = ENGINES[capabilities.engine]
    engine = resolve_name(named) if isinstance(named, str) else named
    assert engine.capabilities is capabilities
