"""A training run's whole configuration, composed of the sections that live beside what they configure."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.health.spikes import SpikeConfig
from gpt.model.config import ModelConfig
from gpt.telemetry.metrics import MetricsConfig
from gpt.training.config import CheckpointConfig, FaultConfig, ObjectiveConfig, TrainConfig, check_can_rewind
from gpt.training.optimizer import OptimizerConfig
from gpt.training.schedule import ScheduleConfig
from launch.config.objectives import DEFAULT, OBJECTIVES
from launch.config.recipe import apply_overrides, build, find_recipe, read_toml
from parallel.health.config import HealthConfig
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import Layout, resolve_layout


@dataclass(frozen=True)
class RunSection:
    """Where a run lives and what it runs on. `start_from`: the run, or one checkpoint of it, whose weights a new run
    begins with; optimizer, data and step begin anew. `peak_flops_per_s` is one device's, for MFU; None looks it up.
    `deterministic`: the same bits from run to run on one layout, or the name of the operation that prevents it.
    `restart_pause_s`: before a start that follows one which got no further; then four times as long, each time."""

    directory: Path
    seed: int = 1234
    device: Literal["auto", "cpu", "cuda"] = "auto"
    start_from: Path | None = None
    deterministic: bool = False
    peak_flops_per_s: float | None = None
    collective_timeout_s: int = 600
    restart_pause_s: float = 15.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed = {self.seed} must be from 0 to 2^63 - 1")
        if self.peak_flops_per_s is not None and not 0 < self.peak_flops_per_s < float("inf"):
            raise ConfigError(
                f"run.peak_flops_per_s = {self.peak_flops_per_s:g} must be a number above 0; leave it out to have it "
                f"looked up"
            )
        if self.collective_timeout_s < 1:
            raise ConfigError(f"run.collective_timeout_s = {self.collective_timeout_s} must be at least 1 second")
        if not 0 <= self.restart_pause_s <= 300:
            raise ConfigError(f"run.restart_pause_s = {self.restart_pause_s:g} must be from 0 to 300 seconds")


@dataclass(frozen=True)
class RunConfig:
    """Everything a recipe says."""

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

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ConfigError("data.train is empty; give at least one corpus: train = [{ path = 'corpus/train' }]")
        self.health.check_collective_timeout(self.run.collective_timeout_s)
        check_can_rewind(self.spike, self.checkpoint, step_tokens=self.batch.global_batch_tokens)


def read_run_config(recipe: str, overrides: list[str]) -> RunConfig:
    """A recipe file, or the name of a shipped one, with the command line's overrides on top."""
    return build(RunConfig, apply_overrides(read_toml(find_recipe(recipe)), overrides), where="")


def layout_of(config: RunConfig, world_size: int) -> Layout:
    """The layout over so many processes; ConfigError where the recipe's does not fit them."""
    return resolve_layout(
        config.parallel, config.batch, model=config.model, seq_len=config.data.seq_len, world_size=world_size
    )


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as nested tables, ready for JSON."""
    table: dict[str, Any] = _plain(dataclasses.asdict(config))
    return table


def from_dict(table: dict[str, Any]) -> RunConfig:
    """The configuration that `as_dict` wrote."""
    return build(RunConfig, _without_none(table), where="")


def with_defaults(table: dict[str, Any]) -> dict[str, Any]:
    """A configuration that an earlier version saved, with the defaults of keys that it did not have."""
    try:
        return as_dict(from_dict(table))
    except ConfigError:  # it has keys that are no more
        return table


def changed_keys(old: dict[str, Any], new: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two configurations, each with both values."""
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


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
