"""Our adapters as the two files that PEFT reads, and such files as our adapters.

adapter_config.json          rank, alpha, the modules with adapters
adapter_model.safetensors    A and B of each module, fp32

GPT-2 joins q, k and v in one module. Its A holds the rows of all three, and its B their blocks, with zeros elsewhere.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.adapters.config import AdapterConfig, adapter_names, projections
from gpt.convert.hugging_face.names import family_of, table
from gpt.convert.round_trip import compare
from gpt.convert.weights import check_finite
from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.files.safetensors import TensorLocation, TensorSpec, digest, encode_file, read_header, read_tensor
from gpt.model.config import ModelConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_ALPHA = 1e9  # of PEFT's adapters; alpha / rank multiplies weights of fp32
_PREFIX = "base_model.model."
# An adapter computes something else if one of these settings is neither null nor this value.
_NEEDS: dict[str, object] = {
    "peft_type": "LORA",
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": [],
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_parameters": [],
    "use_bdlora": False,
}


@dataclass(frozen=True)
class PeftModule:
    """A module of transformers whose weight joins those of our projections `parts`; `adapted` have an adapter."""

    hf_name: str
    parts: tuple[str, ...]
    adapted: tuple[str, ...]

    @property
    def names(self) -> tuple[str, str]:
        """The names of A and B."""
        return f"{_PREFIX}{self.hf_name}.lora_A.weight", f"{_PREFIX}{self.hf_name}.lora_B.weight"

    @property
    def leaf(self) -> str:
        return self.hf_name.rpartition(".")[2]


def peft_modules(config: ModelConfig, adapter: AdapterConfig | None = None) -> list[PeftModule]:
    """The modules of transformers that can have an adapter, in order; with `adapter`, those that have one.

    ConfigError: transformers has no architecture for this model.
    """
    known = projections(config)
    found = []
    for entry in table(config):
        parts = tuple(name.removesuffix(".weight") for name in entry.names)
        if not entry.hf_name.endswith(".weight") or parts[0] not in known:
            continue
        adapted = tuple(part for part in parts if adapter is None or adapter.has_target(part))
        if adapted:
            found.append(PeftModule(entry.hf_name.removesuffix(".weight"), parts, adapted))
    return found


def peft_settings(config: ModelConfig, adapter: AdapterConfig, *, base: str | None) -> dict[str, object]:
    """The contents of adapter_config.json. `base`: the name or path of the base model, if it is known."""
    modules = peft_modules(config, adapter)
    all_of = {leaf: sum(m.leaf == leaf for m in peft_modules(config)) for leaf in {m.leaf for m in modules}}
    whole = [leaf for leaf in sorted(all_of) if sum(m.leaf == leaf for m in modules) == all_of[leaf]]
    single = [module.hf_name for module in modules if module.leaf not in whole]
    joined = [module for module in modules if len(module.adapted) > 1]
    ranks = {module.hf_name: len(module.adapted) * adapter.rank for module in joined}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rank_stabilized,
        "target_modules": [*whole, *single],
        "rank_pattern": ranks,
        "alpha_pattern": {
            name: adapter.scale * (math.sqrt(rank) if adapter.rank_stabilized else rank) for name, rank in ranks.items()
        },
        "fan_in_fan_out": family_of(config) == "gpt2",
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "inference_mode": True,
    }


def peft_shapes(config: ModelConfig, adapter: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of adapter_model.safetensors with their shapes, in order."""
    known = projections(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for module in peft_modules(config, adapter):
        a, b = module.names
        rank = len(module.adapted) * adapter.rank
        shapes |= {a: (rank, known[module.parts[0]][1]), b: (sum(known[part][0] for part in module.parts), rank)}
    return shapes


def to_peft(config: ModelConfig, adapter: AdapterConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """PEFT's (name, tensor) pairs in the order of `peft_shapes`, from all our adapters by name."""
    known = projections(config)
    for module in peft_modules(config, adapter):
        a_name, b_name = module.names
        pairs = {part: [tensors[name] for name in adapter_names(part)] for part in module.adapted}
        yield a_name, torch.cat([a for a, _ in pairs.values()])
        b = torch.zeros(sum(known[part][0] for part in module.parts), len(pairs) * adapter.rank)
        row, column = 0, 0
        for part in module.parts:
            if part in pairs:
                b[row : row + known[part][0], column : column + adapter.rank] = pairs[part][1]
                column += adapter.rank
            row += known[part][0]
        yield b_name, b


def write_peft(
    folder: Path, config: ModelConfig, adapter: AdapterConfig, tensors: Mapping[str, Tensor], *, base: str | None
) -> int:
    """Write both files into `folder` and read them back; return the number of tensors.

    ConfigError: an adapter contains NaN or infinity. RuntimeError: a tensor did not come back bit for bit.
    """
    for name, tensor in tensors.items():
        check_finite(name, tensor, where="the checkpoint")
    settings = peft_settings(config, adapter, base=base)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    specs = {name: TensorSpec(shape, torch.float32) for name, shape in peft_shapes(config, adapter).items()}
    with open(folder / WEIGHTS, "xb") as file:
        file.writelines(encode_file(specs, to_peft(config, adapter, tensors)))
    digests = {name: digest(tensor, torch.float32) for name, tensor in to_peft(config, adapter, tensors)}
    found = read_header(folder / WEIGHTS)
    compare(specs, digests, ((name, read_tensor(location)) for name, location in found.items()))
    return len(specs)


def is_peft(folder: Path) -> bool:
    """Return whether a folder holds the files of an adapter."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path, config: ModelConfig) -> tuple[AdapterConfig, Iterator[tuple[str, Tensor]]]:
    """The adapter in a folder of PEFT's files for a base model, and our (name, tensor) pairs, one at a time.

    ConfigError: it is no LoRA adapter that we can express, it does not fit the model, or a tensor, when it is read,
    contains NaN or infinity. Pickles are never read.
    """
    settings = read_json_object(folder / CONFIG)
    for key, needed in _NEEDS.items():
        value = settings.get(key)
        if value is not None and (type(value) is not type(needed) or value != needed):
            raise ConfigError(f"{folder / CONFIG}: {key} = {json.dumps(value)} cannot be expressed here")
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}. Save the adapter as safetensors; pickles are never read")
    found = read_header(folder / WEIGHTS)
    known = {name: module for module in peft_modules(config) for name in module.names}
    modules: dict[str, PeftModule] = {}
    for name in found:
        if name not in known:
            raise ConfigError(f"{folder / WEIGHTS}: the tensor '{name}' is unknown to the base model's architecture")
        modules[known[name].hf_name] = known[name]
    targets = tuple(part for module in modules.values() for part in module.parts)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if type(rank) is not int or alpha is None or not is_number or not 0 < alpha <= MAX_ALPHA:
        raise ConfigError(
            f"{folder / CONFIG}: r must be a whole number, and lora_alpha a number above 0, at most {MAX_ALPHA:g}"
        )
    adapter = AdapterConfig(
        rank=rank,
        alpha=float(alpha),
        targets=_patterns(config, targets),
        rank_stabilized=bool(settings.get("use_rslora")),
    )
    _check_shapes(folder, config, adapter, list(modules.values()), found)
    return adapter, _from_peft(config, list(modules.values()), found)


def _from_peft(
    config: ModelConfig, modules: Iterable[PeftModule], found: Mapping[str, TensorLocation]
) -> Iterator[tuple[str, Tensor]]:
    """Our pairs: each projection of a joined module has the module's A and its own rows of B."""
    known = projections(config)
    for module in modules:
        a, b = (
            check_finite(name, read_tensor(found[name]), where=str(found[name].file)).float() for name in module.names
        )
        for part, rows in zip(module.parts, torch.split(b, [known[part][0] for part in module.parts]), strict=True):
            a_name, b_name = adapter_names(part)
            yield a_name, a
            yield b_name, rows.contiguous()


def _check_shapes(
    folder: Path,
    config: ModelConfig,
    adapter: AdapterConfig,
    modules: list[PeftModule],
    found: Mapping[str, TensorLocation],
) -> None:
    known = projections(config)
    for module in modules:
        shapes = (adapter.rank, known[module.parts[0]][1]), (sum(known[p][0] for p in module.parts), adapter.rank)
        for name, shape in zip(module.names, shapes, strict=True):
            here: Any = found[name].shape if name in found else "absent"
            if here != shape:
                raise ConfigError(f"{folder / WEIGHTS}: the tensor '{name}' is {here}, but {shape} for this base model")


def _patterns(config: ModelConfig, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Short patterns for exactly these projections: `blocks.*.attention.q` if every block has it."""
    wanted = set(targets)
    by_part: dict[str, list[str]] = {}
    for name in projections(config):
        by_part.setdefault(name.split(".", 2)[2], []).append(name)
    patterns: list[str] = []
    for part, names in by_part.items():
        chosen = [name for name in names if name in wanted]
        patterns += [f"blocks.*.{part}"] if len(chosen) == len(names) else chosen
    return tuple(patterns)
