"""The whole configuration of a training run, composed of sections that are defined next to the code they configure."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt.adapters.config import AdapterConfig, check_adapter
from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.health.spikes import SpikeConfig
from gpt.model.attention_kernels import check_kernel
from gpt.model.config import ModelConfig
from gpt.telemetry.metrics import MetricsConfig
from gpt.training.config import (
    CheckpointConfig,
    FaultConfig,
    ObjectiveConfig,
    TrainConfig,
    check_can_rewind,
    check_keep_best,
)
from gpt.training.optimizer import OptimizerConfig
from gpt.training.schedule import ScheduleConfig
from launch.config.defaults import Resolved, resolve
from launch.config.lengths import as_given, without_replaced
from launch.config.objectives import DEFAULT, OBJECTIVES
from launch.config.recipe import MissingKeys, apply_overrides, build, find_recipe, read_toml, without_none
from parallel.engines.capabilities import check_engine, check_installed
from parallel.health.config import HealthConfig
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import Layout, resolve_layout

NCCL_PREFIXES = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_")  # the last: torch's record of collectives


@dataclass(frozen=True)
class RunSection:
    """The [run] section of a recipe: where a run writes and on which devices it runs."""

    directory: Path
    """The run's folder: checkpoints, metrics, events and the resolved recipe."""
    seed: int = 1234
    """Draws the starting weights and the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device of each rank. `auto` takes CUDA where a GPU is visible."""
    start_from: Path | None = None
    """A run, or one of its checkpoints, whose weights a new run starts with. The optimizer, the data and the step count
    start from the beginning. With a smaller `model.n_layers` it takes the first layers."""
    deterministic: bool = False
    """Give the same bits from run to run on one layout, or end with an error that names the operation that cannot."""
    peak_flops_per_s: float | None = None
    """Peak FLOP/s of one device, for MFU. Looked up by default."""
    collective_timeout_s: int = 600
    """Seconds after which a collective that some rank never joined fails."""
    restart_pause_s: float = 15.0
    """Seconds before the restart of a run that made no progress. Each further pause is 4 times as long."""
    nccl: dict[str, str] = field(default_factory=dict)
    """Environment variables of NCCL, and of torch's use of it, for every rank on GPUs: { NCCL_IB_HCA = "mlx5" }. A
    variable that is set already keeps its value."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed = {self.seed} is invalid: must be from 0 to 2^63 - 1")
        if self.peak_flops_per_s is not None and not 0 < self.peak_flops_per_s < float("inf"):
            raise ConfigError(
                f"run.peak_flops_per_s = {self.peak_flops_per_s:g} is invalid: must be a number above 0. Leave it out "
                f"to have it looked up"
            )
        if self.collective_timeout_s < 1:
            raise ConfigError(
                f"run.collective_timeout_s = {self.collective_timeout_s} is invalid: must be at least 1 second"
            )
        if not 0 <= self.restart_pause_s <= 300:
            raise ConfigError(
                f"run.restart_pause_s = {self.restart_pause_s:g} is invalid: must be from 0 to 300 seconds"
            )
        for name, value in self.nccl.items():
            if "\0" in value:
                raise ConfigError(f"run.nccl.{name} is invalid: no variable can hold a NUL character. Leave it out")
            if not name.startswith(NCCL_PREFIXES) or not name.replace("_", "").isalnum():
                raise ConfigError(
                    f"run.nccl.{name} is invalid: not a variable of NCCL. Use names that start with "
                    f"{', '.join(NCCL_PREFIXES[:-1])} or {NCCL_PREFIXES[-1]}"
                )


@dataclass(frozen=True)
class RunConfig:
    """All sections of a recipe. ConfigError if they contradict each other."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    objective: ObjectiveConfig = field(default_factory=OBJECTIVES[DEFAULT], metadata={"kinds": OBJECTIVES})
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    adapter: AdapterConfig | None = None

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ConfigError("data.train is empty. Name at least one corpus: train = [{ path = 'corpus/train' }]")
        self.health.check_collective_timeout(self.run.collective_timeout_s)
        check_keep_best(self.checkpoint, self.train)
        check_can_rewind(self.spike, self.checkpoint, step_tokens=self.batch.global_batch_tokens)
        sections = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_engine(**sections)
        check_kernel(
            self.parallel.attention,
            half=self.parallel.precision != "fp32",
            d_head=self.model.d_head,
            shares_heads=self.model.kv_heads != self.model.n_heads,
            segments=self.data.has_segments,
            deterministic=self.run.deterministic,
        )
        if self.adapter is not None:
            check_adapter(self.model, self.adapter)
            if self.parallel.precision == "fp8":
                raise ConfigError(
                    'parallel.precision = "fp8" with [adapter] is invalid: a frozen base has a third of the products '
                    'that fp8 shortens. Use parallel.precision = "bf16"'
                )
            if not self.adapter.save_base and self.run.start_from is None:
                raise ConfigError(
                    "adapter.save_base = false is invalid without run.start_from: checkpoints must name a base model. "
                    "Use adapter.save_base = true"
                )

    @property
    def restarts_positions(self) -> bool:
        """See gpt.training.config.ObjectiveConfig."""
        return bool(getattr(self.objective, "restarts_positions", False))

    @property
    def predicts_tokens(self) -> bool:
        """See gpt.training.config.ObjectiveConfig."""
        return bool(getattr(self.objective, "predicts_tokens", False))


def read_run_config(recipe: str, overrides: list[str]) -> RunConfig:
    """Read a recipe file, or a shipped recipe by its name, and apply the command line's overrides."""
    return build_run_config(recipe_table(read_toml(find_recipe(recipe)), overrides))


def recipe_table(given: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A training recipe's table with the command line's overrides. A length there replaces one in another unit."""
    return apply_overrides(without_replaced(given, apply_overrides({}, overrides)), overrides)


def build_run_config(table: dict[str, Any]) -> RunConfig:
    """The configuration of a recipe's table, with all lengths in tokens and the values of keys that have a rule."""
    return config_of(resolve(table))


def config_of(resolved: Resolved) -> RunConfig:
    """The configuration of a resolved table. ConfigError: as RunConfig, and all missing keys at once."""
    try:
        return build(RunConfig, resolved.table, where="")
    except MissingKeys as error:
        keys = {key: kind for key, kind in error.keys.items() if key not in resolved.waiting}
        if "train.total_tokens" in keys:
            keys["train.total_tokens"] += ", or set train.total_steps or train.epochs"
        raise MissingKeys(keys) from None
    except ConfigError as error:
        raise ConfigError(as_given(str(error), resolved.origins)) from None


def layout_of(config: RunConfig, world_size: int, *, option: str = "") -> Layout:
    """The layout over `world_size` processes; ConfigError if it does not fit them, or its engine is not installed.

    `option`: the one that gave the number of processes, for the error; "" if none did.
    """
    check_installed(config.parallel.engine)
    return resolve_layout(
        config.parallel,
        config.batch,
        model=config.model,
        seq_len=config.data.seq_len,
        world_size=world_size,
        restarts_positions=config.restarts_positions,
        option=option,
    )


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as nested tables, ready for JSON. Sections that the recipe lacks are left out."""
    table: dict[str, Any] = _plain(dataclasses.asdict(config))
    return {name: section for name, section in table.items() if section is not None}


def from_dict(table: dict[str, Any]) -> RunConfig:
    """The configuration from the tables that `as_dict` returned."""
    return build(RunConfig, without_none(table), where="")


def with_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """A configuration that an earlier version saved, with the defaults of keys that it did not have."""
    try:
        return as_dict(from_dict(table))
    except ConfigError:  # it has keys that are no more
        return table


def changed_keys(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> list[str]:
    """One line per dotted key whose values differ: "train.z_loss: 0.0 -> 0.1"."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_keys(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before} -> {after}")
    return changes


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
