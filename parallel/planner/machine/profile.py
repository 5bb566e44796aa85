"""The profile of a machine: measured times of kernels, messages and small training steps, in a JSON file."""

import dataclasses
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, file_error
from gpt.files.json_rules import Fields, Finite, JsonRule, ListOf, Text, Whole, read_checked_json
from gpt.model.config import ModelConfig
from parallel.layout.config import V_SHAPED
from parallel.planner.step_time.job import Job

SCHEMA = 2  # 1 had no sample with many tokens for each weight, and added gradients to new memory
MAX_BYTES = 1 << 24
MIN_SECONDS = 1e-12
MAY_BE_0 = ("gpus", "spread", "waiting", "zero")
UNMEASURED = ("forward", "backward")  # of steps of several ranks


@dataclass(frozen=True)
class MachineIdentity:
    """The facts that must be equal for a profile to hold. `gpu` is "" on a machine without one."""

    cpu: str
    instructions: str  # the widest vector instructions that torch uses
    cores: int
    torch: str
    gpu: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class ProductTime:
    """Seconds of a product. `side`: "forward" is (m, k) by (n, k) transposed; "input" and "weight" are its gradients'
    products, for the same m, n and k."""

    precision: str
    side: str
    m: int
    n: int
    k: int
    seconds: float


@dataclass(frozen=True)
class AttentionTime:
    """Seconds of causal attention over `heads` heads of all sequences together."""

    precision: str
    heads: int
    length: int
    d_head: int
    forward: float
    backward: float


@dataclass(frozen=True)
class ElementwiseTime:
    """Seconds of an elementwise kernel and of its backward."""

    precision: str
    kind: str
    elements: int
    forward: float
    backward: float


@dataclass(frozen=True)
class CollectiveTime:
    """Seconds of a message between `ranks` ranks. `bytes`: of the whole tensor, as gathered or before reduction."""

    kind: str
    ranks: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class EngineSample:
    """Seconds of a small model's training step with the real engine. 0: not measured for this layout.

    `forward`, `backward`: of one micro-batch, its weights gathered. `step`: all micro-batches with what ZeRO sends.
    `update`: the optimizer's step with the gradients' norm. `tensors`: parameters that a rank holds.
    """

    precision: str
    style: str  # "gpt3" or "llama": see `model_of`
    d_model: int
    n_layers: int
    n_heads: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    micro_batches: int
    split: tuple[int, ...]
    tensor: int
    pipeline: int
    data: int
    zero: int
    schedule: str
    recompute: str
    tensors: int
    forward: float
    backward: float
    step: float
    update: float

    @property
    def job(self) -> Job:
        return Job(
            model_of(self.style, self.d_model, self.n_layers, self.n_heads, self.vocab_size, self.seq_len),
            self.seq_len,
            self.micro_batch_size,
            self.micro_batches,
            self.split,
            tensor=self.tensor,
            pipeline=self.pipeline,
            data=self.data,
            shard=1 if self.zero == 0 else self.data,
            zero=self.zero,
            schedule=self.schedule,
            v_shaped=self.schedule in V_SHAPED and self.pipeline > 1,
            recompute=self.recompute,  # type: ignore[arg-type]
            precision=self.precision,
        )


@dataclass(frozen=True)
class RanksTables:
    """All times measured while `ranks` processes of `threads` threads worked at once.

    `spread`: median over all measurements of (third quartile - first quartile) / median. `waiting`: share of the time
    in which another program had the core, where it could be measured.
    """

    ranks: int
    threads: int
    spread: float
    waiting: float
    products: tuple[ProductTime, ...] = ()
    attention: tuple[AttentionTime, ...] = ()
    elementwise: tuple[ElementwiseTime, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    samples: tuple[EngineSample, ...] = ()


@dataclass(frozen=True)
class MachineProfile:
    """A machine's measured times. `memory_bytes`: of a GPU, or of the whole machine without one."""

    machine: MachineIdentity
    measured_at: str
    elapsed_s: float
    memory_bytes: int
    by_ranks: tuple[RanksTables, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.precision for tables in self.by_ranks for row in tables.products))


def model_of(style: str, d_model: int, n_layers: int, n_heads: int, vocab_size: int, n_ctx: int) -> ModelConfig:
    """GPT-3's decoder, or the modern one: rotary positions, RMSNorm, SwiGLU, no biases, untied."""
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "n_ctx": n_ctx, "n_layers": n_layers, "d_model": d_model}
    if style == "llama":
        sizes |= {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False}
        sizes["d_ff"] = 64 * -(-8 * d_model // 192)
    return ModelConfig(**sizes, n_heads=n_heads)


def write_profile(path: Path, profile: MachineProfile) -> None:
    """Write a profile. OSError as for `open`."""
    table = {"schema": SCHEMA, **dataclasses.asdict(profile)}
    lines = json.dumps(_rounded(table), indent=1)
    path.write_text(lines + "\n", encoding="utf-8")


def read_profile(path: Path) -> MachineProfile:
    """Read a profile. ConfigError: it cannot be read, is damaged, or has another version of the format."""
    try:
        table = read_checked_json(path, Fields({"schema": Whole()}), max_bytes=MAX_BYTES)
        if table["schema"] != SCHEMA:
            raise ConfigError(
                f"{path} is invalid: it is a profile of version {table['schema']}, and this program reads version "
                f"{SCHEMA}. Measure again: triaxial doctor --measure"
            )
        read_checked_json(path, _rule(MachineProfile), max_bytes=MAX_BYTES)
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    tables = [_tables(each) for each in table["by_ranks"]]
    for each in tables:
        empty = [name for name in ROWS if not getattr(each, name) and (name != "collectives" or each.ranks > 1)]
        if empty:
            raise ConfigError(
                f"{path} is invalid: its table '{empty[0]}' of {each.ranks} ranks is empty. Measure again: triaxial "
                f"doctor --measure"
            )
    machine = MachineIdentity(**{f.name: table["machine"][f.name] for f in fields(MachineIdentity)})
    return MachineProfile(machine, table["measured_at"], table["elapsed_s"], table["memory_bytes"], tuple(tables))


def is_profile(path: Path) -> bool:
    """Whether a path names a file, which can only be a profile: a run is a folder."""
    return path.is_file() or path.suffix == ".json"


def difference(profile: MachineIdentity, here: MachineIdentity) -> str | None:
    """The first fact in which two machines differ, as words; None if they are equal."""
    words = {"cpu": "the CPU", "instructions": "the vector instructions", "torch": "torch", "gpu": "the GPU"}
    for each in fields(MachineIdentity):
        theirs, ours = getattr(profile, each.name), getattr(here, each.name)
        if theirs != ours:
            name = words.get(each.name, f"the number of {each.name}")
            return f"{name} was {theirs or 'none'} and is {ours or 'none'} here"
    return None


ROWS = {  # the tables of RanksTables
    "products": ProductTime,
    "attention": AttentionTime,
    "elementwise": ElementwiseTime,
    "collectives": CollectiveTime,
    "samples": EngineSample,
}


def _tables(table: dict[str, Any]) -> RanksTables:
    rows: dict[str, Any] = {}
    for name, kind in ROWS.items():
        rows[name] = tuple(
            kind(**{f.name: tuple(v) if isinstance(v := row[f.name], list) else v for f in fields(kind)})
            for row in table[name]
        )
    return RanksTables(table["ranks"], table["threads"], table["spread"], table["waiting"], **rows)


def _rule(kind: type[Any]) -> JsonRule:
    """The rule for the JSON of one of this module's classes. Sizes and times divide, so most cannot be 0."""
    required: dict[str, JsonRule] = {}
    for each in fields(kind):
        may_be_0 = each.name in MAY_BE_0 or (kind is EngineSample and each.name in UNMEASURED)
        simple: dict[Any, JsonRule] = {
            int: Whole(0 if may_be_0 else 1),
            float: Finite(0.0 if may_be_0 else MIN_SECONDS),
            str: Text(),
            tuple[int, ...]: ListOf(Whole(1), 1000),
        }
        if each.name in ROWS:
            required[each.name] = ListOf(_rule(ROWS[each.name]))
        elif each.name == "by_ranks":
            required[each.name] = ListOf(_rule(RanksTables), 64)
        elif each.name == "machine":
            required[each.name] = _rule(MachineIdentity)
        else:
            required[each.name] = simple[each.type]
    return Fields(required)


def _rounded(value: Any) -> Any:
    """The same with fractions cut to five digits, which is more than a clock can tell."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
