"""What each engine takes, as data: package and versions, devices, and the values of a recipe. Imports no engine.

docs/guides/training/engines.md has these tables.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from typing import Any

from gpt.errors import ConfigError, install_command, missing_extra, nearest
from parallel.layout.config import ParallelConfig

ABOVE_1 = "above 1"  # in a list of values: every integer above 1
Values = tuple[object, ...]


@dataclass(frozen=True)
class EngineRule:
    """The values that an engine takes for one dotted key of a recipe. With `when`, only while another key has one of
    these values: ("parallel.pipeline", (ABOVE_1,)).

    The first of `allowed` is the one to suggest, except for numbers, where it is the nearest.
    """

    key: str
    allowed: Values
    reason: str
    when: tuple[str, Values] | None = None


@dataclass(frozen=True)
class BadVersions:
    """Versions of a package that must not be used, from the first to the last, and their fault."""

    first: str
    last: str
    fault: str


@dataclass(frozen=True)
class EngineCapabilities:
    """What one engine takes. A key without a rule may have every value that a recipe allows.

    `package`: on PyPI; None if the core packages suffice. `extra`: the extra of triaxial that installs it. Versions
    from `at_least` to before `below`. `devices`: types of torch devices.
    """

    engine: str
    devices: tuple[str, ...]
    package: str | None = None
    extra: str = ""
    at_least: str = "0"
    below: str | None = None
    bad_versions: tuple[BadVersions, ...] = ()
    rules: tuple[EngineRule, ...] = ()
    shares_mesh: bool = False  # several engines on one mesh are proven, as PPO needs
    relations: str | None = None  # "module:function" that gets the recipe's sections and refuses what no rule can name
    unused: str | None = None  # "module:function" that gets [parallel] and returns a line for each key without effect

    @property
    def versions(self) -> str:
        """The range of versions as pip writes it, such as ">=0.16,<0.17"."""
        return f">={self.at_least}" + (f",<{self.below}" if self.below else "")


PIPELINE = ("parallel.pipeline", (ABOVE_1,))  # while a recipe has a pipeline
NATIVE = EngineCapabilities("native", devices=("cpu", "cuda"), shares_mesh=True)
DEEPSPEED = EngineCapabilities(
    "deepspeed",
    devices=("cpu", "cuda"),
    package="deepspeed",
    extra="deepspeed",
    at_least="0.19.6",
    below="0.20",  # the engine reads attributes that DeepSpeed does not document
    bad_versions=(BadVersions("0.17.6", "0.19.3", "computed wrong gradients"),),
    rules=(
        EngineRule("parallel.tensor", (1,), "ZeRO's flat tensors cannot hold the shards of tensor ranks"),
        EngineRule(
            "parallel.zero_stage", (1, 2, 3), "without ZeRO, DeepSpeed gives no gradient norm, and bf16 weights drift"
        ),
        EngineRule("parallel.data_shard", (None,), "all data ranks share one copy of the optimizer"),
        EngineRule("parallel.zero_stage", (1,), "a pipeline backward needs whole gradients", when=PIPELINE),
        EngineRule(
            "parallel.schedule",
            ("1f1b", "gpipe", "interleaved_1f1b"),
            "ZeRO's hooks need whole backward passes",
            when=PIPELINE,
        ),
        EngineRule("parallel.offload", (False,), "offload is for a data axis alone", when=PIPELINE),
        EngineRule("optimizer.frozen", ((),), "a stage without a trained parameter has no optimizer", when=PIPELINE),
        EngineRule("parallel.compile", (False,), "compiled blocks under ZeRO's hooks are not proven equal"),
        EngineRule("parallel.precision", ("bf16", "fp32"), "fp8 products under ZeRO's hooks are not proven equal"),
        EngineRule("adapter.kind", (None,), "ZeRO's flat tensors of adapters are not proven equal"),
        EngineRule(
            "parallel.recompute",
            ("none", "full"),
            "ZeRO 3 gathers weights again where selective recomputation expects kept results",
            when=("parallel.zero_stage", (3,)),
        ),
    ),
)
MEGATRON = EngineCapabilities(
    "megatron",
    devices=("cuda",),
    package="megatron-core",
    extra="megatron",
    at_least="0.16",
    below="0.17",
    rules=(
        EngineRule("run.deterministic", (False,), "nothing asks Transformer Engine's kernels for the same bits"),
        EngineRule("parallel.zero_stage", (0, 1), "Megatron's distributed optimizer is ZeRO 1"),
        EngineRule("parallel.data_shard", (None,), "all data ranks share one copy of the optimizer"),
        EngineRule(
            "parallel.schedule",
            ("1f1b", "interleaved_1f1b"),
            "Megatron-core has two schedules",
            when=("parallel.pipeline", (ABOVE_1,)),
        ),
        EngineRule("parallel.offload", (False,), "the engine keeps optimizer states on the device"),
        EngineRule("parallel.compile", (False,), "Megatron-core has its own fused layers"),
        EngineRule("parallel.precision", ("bf16", "fp32"), "Transformer Engine's fp8 is not set up"),
        EngineRule("parallel.async_tensor", (False,), "Megatron-core has its own tensor parallelism"),
        EngineRule("parallel.attention", ("auto",), "Megatron-core has its own attention"),
        EngineRule("objective.kind", ("next_token",), "Megatron's GPTModel predicts the next token"),
        EngineRule("data.sampling", ("window",), "Megatron's attention is causal over the whole sequence"),
        EngineRule("data.document_mask", (False,), "Megatron's attention is causal over the whole sequence"),
        EngineRule("train.residual_dropout", (0.0,), "the masks of its dropout depend on the layout"),
        EngineRule("optimizer.kind", ("adamw",), "Megatron's distributed optimizer is AdamW"),
        EngineRule("optimizer.frozen", ((),), "the engine keeps fp32 weights of trained parameters only"),
        EngineRule("adapter.kind", (None,), "Megatron's fused layers have no adapters"),
    ),
    relations="parallel.megatron.limits:check_relations",
    unused="parallel.megatron.limits:unused_settings",
)
ALL = (NATIVE, DEEPSPEED, MEGATRON)


def capabilities_of(engine: str) -> EngineCapabilities:
    """The capabilities of `parallel.engine`. Imports nothing."""
    return next(each for each in ALL if each.engine == engine)


def check_engine(parallel: ParallelConfig, **sections: object) -> None:
    """ConfigError if the engine does not take a value of the recipe.

    `sections`: other sections by name (model=..., optimizer=...). Rules for keys of a section that is left out or
    None do not apply.
    """
    capabilities = capabilities_of(parallel.engine)
    recipe = {"parallel": parallel, **sections}
    rule = _broken_rule(capabilities, recipe)
    if rule is None:
        if capabilities.relations is not None:
            resolve_name(capabilities.relations)(recipe)
        return
    changes = _nearest_changes(capabilities, recipe)
    uses = " and ".join(f"{key} = {_toml(value)}" if value is not None else f"no {key}" for key, value in changes)
    raise ConfigError(
        f"{rule.key} = {_toml(_value(rule.key, recipe))} is invalid with parallel.engine = "
        f'"{parallel.engine}": {rule.reason}. Use {uses}, or parallel.engine = "native"'
    )


def check_engine_device(parallel: ParallelConfig, device_type: str) -> None:
    """ConfigError if the engine does not run on this type of device."""
    devices = capabilities_of(parallel.engine).devices
    if device_type not in devices:
        raise ConfigError(
            f'parallel.engine = "{parallel.engine}" with device "{device_type}" is invalid: it runs on '
            f'{" and ".join(devices)} only. Use parallel.engine = "native"'
        )


def unused_settings(parallel: ParallelConfig) -> list[str]:
    """A line for each setting that has no effect with this engine on this machine, for the start of a run."""
    unused = capabilities_of(parallel.engine).unused
    return [] if unused is None else list(resolve_name(unused)(parallel))


def check_installed(engine: str) -> None:
    """ConfigError if the engine's package is missing or has a version that it cannot use. Imports no package."""
    capabilities = capabilities_of(engine)
    if capabilities.package is None:
        return
    try:
        found = version(capabilities.package)
    except PackageNotFoundError:
        raise missing_extra(capabilities.package, extra=capabilities.extra) from None
    if fault := version_fault(capabilities, found):
        raise ConfigError(
            f'parallel.engine = "{engine}" is invalid here: {capabilities.package} {found} {fault}. Use '
            f"{capabilities.package} {capabilities.versions}: {install_command(capabilities.extra)}"
        )


def version_fault(capabilities: EngineCapabilities, found: str) -> str | None:
    """The reason why a version of the engine's package cannot be used, as the end of a sentence; None if it can."""
    number = release(found)
    for bad in capabilities.bad_versions:
        if release(bad.first) <= number <= release(bad.last):
            return f"{bad.fault} (releases {bad.first} to {bad.last})"
    if number < release(capabilities.at_least):
        return f"is older than {capabilities.at_least}"
    if capabilities.below is not None and number >= release(capabilities.below):
        return f"is not older than {capabilities.below}"
    return None


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at the end: "0.19.0+cpu" is (0, 19)."""
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _broken_rule(capabilities: EngineCapabilities, recipe: Mapping[str, object]) -> EngineRule | None:
    for rule in capabilities.rules:
        if recipe.get(rule.key.partition(".")[0]) is None:
            continue
        applies = rule.when is None or _is_one_of(_value(rule.when[0], recipe), rule.when[1])
        if applies and not _is_one_of(_value(rule.key, recipe), rule.allowed):
            return rule
    return None


def _nearest_changes(capabilities: EngineCapabilities, recipe: Mapping[str, object]) -> list[tuple[str, object]]:
    """The keys to change, with values, so that no rule is broken. The number of processes stays."""
    changed: dict[str, object] = {}
    new: dict[str, Any] = dict(recipe)
    while (rule := _broken_rule(capabilities, new)) is not None and rule.key not in changed:
        section, _, key = rule.key.partition(".")
        old, value = _value(rule.key, new), _nearest_value(_value(rule.key, new), rule.allowed)
        changed[rule.key] = value
        new[section] = replace(new[section], **{key: value})
        parallel = new["parallel"]
        if key in ("tensor", "pipeline") and parallel.data is not None:
            data = parallel.data * old // value
            changed["parallel.data"], new["parallel"] = data, replace(parallel, data=data)
    return list(changed.items())


def _nearest_value(value: Any, allowed: Values) -> Any:
    numbers = [each for each in allowed if type(each) is int]
    return nearest(value, numbers)[0] if numbers and type(value) is int else allowed[0]


def _value(key: str, recipe: Mapping[str, object]) -> Any:
    section, _, name = key.partition(".")
    return getattr(recipe[section], name, None)


def _is_one_of(value: object, values: Values) -> bool:
    return value in values or (ABOVE_1 in values and isinstance(value, int) and value > 1)


def _toml(value: object) -> str:
    if value is None:
        return "nothing"
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
