"""GPUs, networks and software stacks, read from TOML tables that a user can extend."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from gpt.errors import ConfigError, did_you_mean
from gpt.files.toml_files import read_toml

if TYPE_CHECKING:  # it prices a step, which reads these tables
    from parallel.planner.machine.measured_step import MeasuredMachine

T = TypeVar("T")
SUSTAINED = 0.86  # share of the best speed of products that training sustains at the power limit of H100 and later
FP32_SHARE = 16  # bf16's peak over fp32's on an A100; H100 15
MIN_VALUE, MAX_VALUE = 1e-9, 1e9  # of every number in a table: products of several stay finite
SHARES = ("best", "best_fp8", "tensor", "tensor_overlapped", "data", "pipeline")


@dataclass(frozen=True)
class Gpu:
    """One accelerator. The units are those of `gpus.toml`."""

    name: str
    peak: float
    best: float
    attention: float
    memory_gib: float
    memory_gb_per_s: float
    link_gb_per_s: float
    network: str
    peak_fp32: float | None = None
    peak_fp8: float | None = None
    best_fp8: float | None = None
    power: float = 1.0
    sustained: float = SUSTAINED
    watts: float | None = None
    names: tuple[str, ...] = ()

    def product_flops_per_s(self, precision: str) -> float:
        """FLOP/s that a large product sustains in training. ConfigError: the GPU has no fp8."""
        if precision == "fp8":
            if self.peak_fp8 is None or self.best_fp8 is None:
                raise ConfigError(f"precision fp8 on {self.name} is invalid: this GPU has no fp8. Use bf16")
            return self.peak_fp8 * self.best_fp8 * self.sustained * self.power * 1e12
        peak = (self.peak_fp32 or self.peak / FP32_SHARE) if precision == "fp32" else self.peak
        return peak * self.best * self.sustained * self.power * 1e12

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)


@dataclass(frozen=True)
class Network:
    """A network between nodes. The units are those of `networks.toml`."""

    name: str
    gb_per_s: float
    node: int
    latency_us: float
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A training program, by the share of the hardware that it uses. `stacks.toml` explains the fields."""

    name: str
    about: str
    attention: Literal["fused", "unfused"] = "fused"
    kernels: float = 1.0
    overhead: float = 1.0
    overlap_tensor: bool = False
    tensor: float = 0.60
    tensor_overlapped: float = 0.33
    data: float = 0.23
    pipeline: float = 0.83
    gradient_bytes: int = 4
    all_reduces: bool = False
    attention_speed: float = 1.0
    whole_recompute: bool = False
    tensor_messages: float = 4.0
    gathered_logits: bool = False
    scatters_sends: bool = False
    optimizer_bytes: float = 40.0
    accumulate_bytes: float = 10.0
    schedule_unknown: Literal["1f1b", "interleaved_1f1b"] = "interleaved_1f1b"
    spread: float = 0.062
    scale: float = 1.0
    sources: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hardware:
    """All tables by name."""

    gpus: Mapping[str, Gpu]
    networks: Mapping[str, Network]
    stacks: Mapping[str, Stack] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Identical GPUs in nodes of `node`, and the network between the nodes.

    `machine`: the measured costs of one machine. They replace the times that the tables of hardware give.
    """

    gpu: Gpu
    network: Network
    node: int
    machine: "MeasuredMachine | None" = None


def read_hardware(extra: Path | None = None) -> Hardware:
    """Return the shipped tables. `extra`: a user's file with tables [gpus.NAME], [networks.NAME] or [stacks.NAME].

    ConfigError: the file cannot be read, or a table has a wrong or missing key.
    """
    given = read_toml(extra, kind="hardware") if extra is not None else {}
    unknown = next((key for key in given if key not in ("gpus", "networks", "stacks")), None)
    if unknown is not None:
        raise ConfigError(
            f"{extra}: [{unknown}] is invalid: a table is [gpus.NAME], [networks.NAME] or [stacks.NAME]. "
            f"{_meant(unknown, given[unknown])}"
        )
    parts: dict[str, Any] = {}
    for key, kind in (("gpus", Gpu), ("networks", Network), ("stacks", Stack)):
        tables = read_toml(Path(str(resources.files("parallel"))) / "planner" / "hardware" / f"{key}.toml", kind=key)
        more = given.get(key, {})
        if not isinstance(more, dict) or not all(isinstance(table, dict) for table in more.values()):
            raise ConfigError(f"{extra}: {key} is invalid: write tables [{key}.NAME]")
        shipped = {name: _build(kind, name, table) for name, table in tables.items()}
        parts[key] = shipped | {n: _build(kind, n, table, prefix=f"{extra}: {key}.") for n, table in more.items()}
    return Hardware(**parts)


def find(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return the entry with this name or other name, in any case. ConfigError names the nearest known one."""
    names = {alias.lower(): entry for entry in known.values() for alias in getattr(entry, "names", ())}
    names |= {key.lower(): entry for key, entry in known.items()}
    if name.lower() in names:
        return names[name.lower()]
    every = {**{key: key for key in known}, **{a: a for e in known.values() for a in getattr(e, "names", ())}}
    meant = did_you_mean(name.upper(), every) or did_you_mean(name, every) or f"use one of {', '.join(known)}."
    raise ConfigError(f"{kind} '{name}' is unknown: {meant} Add others with --hardware FILE")


def find_gpu(name: str, gpus: Mapping[str, Gpu]) -> Gpu:
    """Return the GPU that a user, a paper or a driver names: "H100", "a100_40gb", "NVIDIA H100 80GB HBM3".

    Words after a known name change nothing, except an A100's 40 GB. ConfigError names the nearest known one.
    """
    words = re.sub(r"[\s_]+", "-", name.strip())
    words = re.sub(r"^((NVIDIA|AMD|INSTINCT|TESLA|DGX|HGX|GEFORCE)-)+", "", words, flags=re.IGNORECASE)
    if re.match(r"A100(?!\d).*40", words, re.IGNORECASE) and "A100-40G" in gpus:
        return gpus["A100-40G"]
    known = {alias: gpu for gpu in gpus.values() for alias in (gpu.name, *gpu.names)}
    begins = [
        alias
        for alias in known
        if any(re.match(rf"{re.escape(alias)}(?![A-Za-z0-9])", text, re.IGNORECASE) for text in (name.strip(), words))
    ]
    return known[max(begins, key=len)] if begins else find("GPU", name, gpus)


def taken_as(name: str, gpu: Gpu, gpus: Mapping[str, Gpu]) -> str:
    """The variant that a name such as "A100" means: its memory, and the other variants. "" if there is only one."""
    stem = gpu.name.partition("-")[0]
    others = [each for each in gpus.values() if each is not gpu and each.name.partition("-")[0] == stem]
    if not others or gpu.name == stem or name.strip().upper() != stem.upper():
        return ""
    also = ", ".join(f"{each.name} ({each.memory_gib:g} GiB)" for each in others)
    return f"{name} is taken as {gpu.name} ({gpu.memory_gib:g} GiB); there is also {also}"


def _meant(name: str, table: object) -> str:
    """The table that a user meant who copied [H100] out of gpus.toml."""
    kinds = {"gpus": Gpu, "networks": Network, "stacks": Stack}
    keys = set(table) if isinstance(table, dict) else set()
    common = {key: len(keys & {entry.name for entry in fields(kind)}) for key, kind in kinds.items()}
    best = max(common, key=lambda key: common[key])
    return f"Use [{best}.{name}]" if common[best] else f"Use [gpus.{name}]"


def _build(kind: type[Any], name: str, table: dict[str, Any], *, prefix: str = "") -> Any:
    allowed = {entry.name: entry for entry in fields(kind) if entry.name != "name"}
    where = f"{prefix}{name}"
    for key, value in table.items():
        if key not in allowed:
            raise ConfigError(f"{where}.{key} is an unknown key; {did_you_mean(key, allowed)}")
        rule = _broken_rule(key, value, wanted=allowed[key].type)
        if rule:
            raise ConfigError(f"{where}.{key} = {value!r} is invalid: must be {rule}")
    missing = [key for key, entry in allowed.items() if entry.default is MISSING and key not in table]
    if missing:
        raise ConfigError(
            f"{where} is invalid: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing. Add "
            f"{'them' if len(missing) > 1 else 'it'}; parallel/planner/hardware explains the keys"
        )
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return kind(name=name, **lists)


def _broken_rule(key: str, value: Any, *, wanted: object) -> str:
    """The rule that a value breaks; "" if it obeys. `wanted`: the type of the field."""
    if wanted is int:
        return "" if type(value) is int and 0 < value <= MAX_VALUE else f"a whole number from 1 to {MAX_VALUE:g}"
    if wanted in (float, float | None):
        limit = 1 if key in SHARES else MAX_VALUE
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if number and MIN_VALUE <= value <= limit else f"a number from {MIN_VALUE:g} to {limit:g}"
    if wanted is bool:
        return "" if isinstance(value, bool) else "true or false"
    if wanted is str:
        return "" if isinstance(value, str) else "a text"
    if get_origin(wanted) is Literal:
        return "" if value in get_args(wanted) else f"one of {', '.join(get_args(wanted))}"
    texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return "" if texts else "a list of texts"
