"""Choose layouts for a number of processes, such that every mode and every possible pair of modes appears."""

import itertools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.engines.capabilities import check_engine, check_engine_device
from parallel.layout.config import BatchConfig, EngineName, ParallelConfig, Precision
from parallel.layout.layout import check_device, resolve_layout

Setting = tuple[str, Any]  # a key of [parallel], and its value

SIZES = ("tensor", "pipeline", "data")
# engine and precision are the same for all layouts. Two need a compiler and one a GPU: only --layout gives these.
NOT_TRIED = ("engine", "precision", "compile", "async_tensor", "attention")
# settings without an effect if their axis has size 1
AXIS_OF = {
    **dict.fromkeys(("schedule", "stages_per_rank", "split"), "pipeline"),
    **dict.fromkeys(("zero_stage", "data_shard"), "data"),
    "sequence_parallel": "tensor",
}


@dataclass(frozen=True)
class Workload:
    """The training that all layouts share: the same global batch of one model, on "cpu" or "cuda".

    `restarts_positions`: see parallel.layout.layout.resolve_layout.
    """

    model: ModelConfig
    batch: BatchConfig
    seq_len: int
    device_type: str
    restarts_positions: bool = False


@dataclass(frozen=True)
class Choice:
    """A valid layout with every size given, and a micro-batch size that divides its share of the global batch."""

    parallel: ParallelConfig
    micro_batch_size: int

    @property
    def world_size(self) -> int:
        return self.parallel.tensor * self.parallel.pipeline * (self.parallel.data or 1)


@dataclass(frozen=True)
class Skipped:
    """A layout or setting that cannot run, as `layout_text` writes it, and the rule that it breaks."""

    layout: str
    reason: str


def layout_text(parallel: ParallelConfig) -> str:
    """Write the settings that differ from the defaults, as in `tensor=2,schedule=gpipe`.

    Sizes come first; a size that was not given counts as 1. Precision is not shown. Without differences: "one process".
    """
    shown = {key: getattr(parallel, key) or 1 for key in SIZES}
    words = [f"{key}={value}" for key, value in shown.items() if value != 1]
    for field in fields(ParallelConfig):
        value = getattr(parallel, field.name)
        if field.name not in (*SIZES, "precision") and value != field.default:
            words.append(f"{field.name}={_toml(value)}")
    return ",".join(words) or "one process"


def is_one_process(parallel: ParallelConfig) -> bool:
    """Return whether no setting has an effect that makes the run differ from that of one process."""
    default = ParallelConfig()
    idle = {key: getattr(default, key) for key in AXIS_OF if not _applies(parallel, key)}
    return layout_text(replace(parallel, **idle)) == "one process"


def fit_micro_batch(parallel: ParallelConfig, workload: Workload) -> Choice:
    """Return the layout with the workload's micro-batch size, else with the nearest smaller one that is valid.

    ConfigError names the rule that the layout breaks with every size.
    """
    check_engine(parallel, model=workload.model)
    check_engine_device(parallel, workload.device_type)
    check_device(parallel, workload.device_type)
    given = replace(parallel, data=1 if parallel.data is None else parallel.data)
    sizes: dict[str, Any] = {
        "model": workload.model,
        "seq_len": workload.seq_len,
        "world_size": given.tensor * given.pipeline * (given.data or 1),
        "restarts_positions": workload.restarts_positions,
    }
    mistake = None
    for size in range(workload.batch.micro_batch_size, 0, -1):
        batch = replace(workload.batch, micro_batch_size=size)
        try:
            resolve_layout(given, batch, **sizes)
        except ConfigError as error:
            mistake = error
        else:
            return Choice(given, size)
    if mistake is None:  # the recipe's own size is below 1: let the rules raise their error
        resolve_layout(given, workload.batch, **sizes)
    assert mistake is not None
    raise mistake


def choose_layouts(
    processes: int,
    workload: Workload,
    *,
    precision: Precision,
    engine: EngineName,
) -> tuple[list[Choice], list[Skipped]]:
    """Return layouts of up to `processes` processes, and the impossible ones with the reason.

    Every possible tensor x pipeline x data appears, each with the modes that add most pairs of settings not seen so
    far. Then follow as many more as it takes to see every possible pair (pairwise testing). The modes are taken from
    the type of ParallelConfig. The plain one-process layout of the default engine is not included.
    """
    plain = ParallelConfig(engine=engine, data=1, precision=precision)
    reference = replace(plain, engine=ParallelConfig().engine)
    by_sizes: list[list[Choice]] = []
    skipped: list[Skipped] = []
    reasons: dict[Setting, str] = {}
    for tensor, pipeline, data in _sizes(processes):
        sized = replace(plain, tensor=tensor, pipeline=pipeline, data=data)
        choices, mistakes = _possible(sized, workload)
        if choices:
            by_sizes.append([choice for choice in choices if choice.parallel != reference])
            for parallel, reason in mistakes:
                reasons |= dict.fromkeys(_settings(parallel) - reasons.keys(), reason)
        else:
            skipped.append(Skipped(layout_text(sized), mistakes[0][1]))
    seen = {setting for choices in by_sizes for choice in choices for setting in _settings(choice.parallel)}
    modes = [setting for setting in reasons if setting not in seen]
    skipped += [Skipped(f"{key}={_toml(value)}", reasons[key, value]) for key, value in modes]
    return _cover(by_sizes), skipped


def _sizes(processes: int) -> list[tuple[int, int, int]]:
    """Return all (tensor, pipeline, data) with a product of at most `processes`, fewest processes first."""
    numbers = range(1, processes + 1)
    fitting = [(t, p, d) for t in numbers for p in numbers[: processes // t] for d in numbers[: processes // (t * p)]]
    return sorted(fitting, key=lambda sizes: (math.prod(sizes), sizes))


def _possible(sized: ParallelConfig, workload: Workload) -> tuple[list[Choice], list[tuple[ParallelConfig, str]]]:
    """Combine these sizes with all modes, the defaults first. Return valid layouts, and the errors of the others."""
    axes: dict[str, Sequence[Any]] = {key: values for key, values in _modes().items() if _applies(sized, key)}
    data = sized.data or 1
    axes["data_shard"] = [None, *(d for d in range(2, data) if data % d == 0)]
    choices, mistakes = [], []
    for values in itertools.product(*axes.values()):
        parallel = replace(sized, **dict(zip(axes, values, strict=True)))
        try:
            choices.append(fit_micro_batch(parallel, workload))
        except ConfigError as error:
            mistakes.append((parallel, str(error)))
    return choices, mistakes


def _modes() -> dict[str, list[Any]]:
    """Return the settings of ParallelConfig with a fixed choice of values, the default first."""
    hints = typing.get_type_hints(ParallelConfig)
    choices = {key: typing.get_args(hint) for key, hint in hints.items() if typing.get_origin(hint) is Literal}
    choices |= {key: (False, True) for key, hint in hints.items() if hint is bool}
    defaults = ParallelConfig()
    return {
        key: sorted(values, key=lambda value: value != getattr(defaults, key))
        for key, values in choices.items()
        if key not in NOT_TRIED
    }


def _applies(parallel: ParallelConfig, mode: str) -> bool:
    return mode not in AXIS_OF or (getattr(parallel, AXIS_OF[mode]) or 1) > 1


def _settings(parallel: ParallelConfig) -> frozenset[Setting]:
    """Return which sizes of a layout are above 1, and its modes that have an effect."""
    shown: set[Setting] = {(key, "above 1") for key in SIZES if getattr(parallel, key) > 1}
    shown |= {(key, getattr(parallel, key)) for key in _modes() if _applies(parallel, key)}
    if parallel.data_shard is not None:
        shown.add(("data_shard", "hybrid"))
    return frozenset(shown)


def _cover(by_sizes: list[list[Choice]]) -> list[Choice]:
    """Return one choice of each list that is not empty, and as many more as show a new pair of settings."""
    everything = list(itertools.chain.from_iterable(by_sizes))
    pairs = {choice: _pairs(choice) for choice in everything}
    seen: set[frozenset[Setting]] = set()
    chosen: list[Choice] = []
    for choices in [*(choices for choices in by_sizes if choices), *itertools.repeat(everything, len(everything))]:
        best = max(choices, key=lambda choice: len(pairs[choice] - seen))  # the first of equals
        if choices is everything and pairs[best] <= seen:
            break
        chosen.append(best)
        seen |= pairs[best]
    return sorted(chosen, key=lambda choice: (choice.world_size, everything.index(choice)))


def _pairs(choice: Choice) -> set[frozenset[Setting]]:
    """Return every pair of a layout's settings, and every single setting."""
    settings = _settings(choice.parallel)
    return {frozenset(pair) for pair in itertools.product(settings, repeat=2)}


def _toml(value: Any) -> str:
    """Write a value as `--layout` reads it."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
