"""Open a Megatron-core checkpoint of a GPTModel as a source of tensors: check names and shapes first, then read layer
by layer.

No pickle is loaded: the description of the tensors, the arguments and the tensor files are all read as data.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gpt.convert.megatron.config import COMMON, config_of, described_by_tensors, read_arguments
from gpt.convert.megatron.names import (
    EMBEDDING,
    HEAD,
    LAYERS,
    NORMS,
    MegatronEntry,
    check_expressible,
    table,
    unsupported_feature,
)
from gpt.convert.torch_formats.dcp_reader import METADATA, SavedTensor, Slice, find_slices, read_metadata, read_slice
from gpt.convert.weights import joined_shape, shapes
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes, read_text
from gpt.files.safetensors import TensorSpec
from gpt.model.config import ModelConfig

TRACKER = "latest_checkpointed_iteration.txt"
ABOUT = "metadata.json"
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
_PADDED = (EMBEDDING, HEAD)
_EXACT = ("torch.float32", "torch.float16", "torch.bfloat16")  # our checkpoints store fp32, which holds all exactly
# Settings of --model that must agree with the arguments. vocab_size may be more exact, and the others are for training.
_MUST_AGREE = (
    *("n_ctx", "n_layers", "d_model", "n_heads", "kv_heads", "ff_width", "positions", "norm", "activation", "bias"),
    *("tied", "norm_eps", "rope_theta", "rope_scaling"),
)


@dataclass(frozen=True)
class MegatronSource:
    """A Megatron model whose tensors stay on disk until they are read, layer by layer."""

    folder: Path
    config: ModelConfig
    slices: dict[MegatronEntry, Slice]  # in the order of names.table, vocabulary padding included
    notes: tuple[str, ...]  # for the user, such as what is left out

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape in the files, vocabulary padding included, and dtype of each entry by its title."""
        return {entry.title: TensorSpec(found.shape, found.dtype) for entry, found in self.slices.items()}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Read the tensors without vocabulary padding, one at a time, each with the title of its entry."""
        for entry, found in self.slices.items():
            tensor = read_slice(found)
            yield entry.title, tensor[: self.config.vocab_size] if entry.megatron_name in _PADDED else tensor
            del tensor


def is_megatron(folder: Path) -> bool:
    """Return whether a folder is a Megatron checkpoint or contains some."""
    names = (METADATA, ABOUT, TRACKER)
    if (folder / "config.json").exists():
        return False  # a Hugging Face folder, or plain safetensors
    return any((folder / name).is_file() for name in names) or any(folder.glob("mp_rank_*"))


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """Return the checkpoint in a folder as Megatron-LM leaves it, with several of them, or the folder itself.

    ConfigError: there is no such checkpoint.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    tracker = folder / TRACKER
    if not tracker.is_file():
        if step is not None:
            raise ConfigError(f"--step {step} is invalid: {folder} is a single checkpoint. Leave --step out.")
        return folder
    latest = read_bytes(tracker, max_bytes=4096).decode(errors="replace").strip()
    if step is None and latest != "release" and not (latest.isdecimal() and len(latest) <= 18):
        raise ConfigError(f"{tracker} must contain an iteration or 'release', but contains {latest[:100]!r}")
    name = "release" if step is None and latest == "release" else f"iter_{int(latest) if step is None else step:07d}"
    if not (folder / name).is_dir():
        here = sorted(path.name for path in folder.glob("iter_*"))
        raise ConfigError(f"{folder} holds no checkpoint {name}; it holds {', '.join(here) or 'none'}")
    return folder / name


def open_source(folder: Path, *, model: ModelConfig | None = None, tokenizer_size: int | None = None) -> MegatronSource:
    """Read everything except the weights; compare names and shapes with `model`, or with the model of the arguments.

    `tokenizer_size`: the vocabulary size if the arguments contain only the padded one.
    ConfigError: there is no such checkpoint, it has another format or an architecture that we do not have, nothing says
    how many heads there are, `model` contradicts the arguments, tensors are missing, unknown or have another shape, or
    files are cut off.
    """
    check_format(folder)
    saved = {name: tensor for name, tensor in read_metadata(folder).items() if "_extra_state" not in name}
    states = {name for name in saved if _OPTIMIZER.match(name)}
    weights = {name: tensor for name, tensor in saved.items() if name not in states}
    for name in weights:
        feature = unsupported_feature(name)
        if feature is not None:
            raise ConfigError(
                f"{folder}: '{name}' belongs to {feature}, which is not supported; only a dense GPTModel is"
            )
    config, notes = _config(folder, weights, model, tokenizer_size)
    check_expressible(config)
    if states:
        notes.append(
            f"{len(states)} tensors of the optimizer are left out: Megatron's moments cannot be used in a run here"
        )
    slices = _find_slices(folder, config, weights)
    rows = slices[MegatronEntry(EMBEDDING, None, ("embed.tokens.weight",))].shape[0]
    if rows > config.vocab_size:
        notes.append(f"{rows - config.vocab_size} rows of vocabulary are padding, which is left out")
    return MegatronSource(folder, config, slices, tuple(notes))


def check_format(folder: Path) -> None:
    """Check that the folder is a torch_dist checkpoint whose save was completed. ConfigError: it is not."""
    path = folder / ABOUT
    if not path.is_file():
        older = next(iter(sorted(folder.glob("mp_rank_*"))), None)
        if older is not None:
            raise ConfigError(
                f"{folder} is a checkpoint in Megatron's older format ({older.name}): pickles, which are never loaded. "
                "Save it again with --ckpt-format torch_dist."
            )
        raise ConfigError(f"{folder} has no {ABOUT}, which Megatron writes last: its save was not completed")
    try:
        about = decode_json(read_text(path))
        backend = about["sharded_backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not name the format of the checkpoint ({error!r})") from None
    if backend != "torch_dist":
        raise ConfigError(f"{path}: the format {str(backend)[:50]!r} is not supported; torch_dist is")


def _config(
    folder: Path, weights: Mapping[str, SavedTensor], model: ModelConfig | None, tokenizer_size: int | None
) -> tuple[ModelConfig, list[str]]:
    arguments, path = read_arguments(folder), folder / COMMON
    saved_shapes = {name: tensor.shape for name, tensor in weights.items()}
    if not any(name.startswith(LAYERS) for name in saved_shapes):
        raise ConfigError(
            f"{folder} holds no layers of a GPTModel ('{LAYERS}...'); its tensors: "
            f"{', '.join(sorted(saved_shapes)[:3])}"
        )
    if arguments is None or "num_attention_heads" not in arguments:
        if model is None:
            raise ConfigError(
                f"{folder} has no Megatron-LM arguments, and the tensors do not contain the number of heads. Name a "
                "recipe with the model's [model] section (--model FILE). Settings found in the tensors: "
                f"{described_by_tensors(saved_shapes)}"
            )
        return model, []
    described = config_of(arguments, where=str(path), tokenizer_size=tokenizer_size)
    if model is None:
        return described, []
    for key in _MUST_AGREE:
        here, there = getattr(model, key), getattr(described, key)
        if here != there:
            raise ConfigError(f"--model says {key} = {here}, but {path} says {there}. Leave --model out.")
    return model, []


def _find_slices(folder: Path, config: ModelConfig, weights: Mapping[str, SavedTensor]) -> dict[MegatronEntry, Slice]:
    """Find every entry of the table in the files. Layers may be stacked, or have their number in the name."""
    saved_as = _by_usual_names(folder, weights)
    found: dict[MegatronEntry, Slice] = {}
    wanted: dict[str, list[MegatronEntry]] = {}
    for entry in table(config):
        name = entry.megatron_name
        numbered = name.replace(LAYERS, f"{LAYERS}{entry.layer}.", 1)
        wanted.setdefault(name if name in saved_as or numbered not in saved_as else numbered, []).append(entry)
    missing = [name for name in wanted if name not in saved_as]
    unknown = [name for name in saved_as if name not in wanted]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} tensors of this GPTModel are missing, '{missing[0]}' is the first")
    if unknown:
        wrong.append(f"{len(unknown)} tensors are unknown to it, '{saved_as[unknown[0]][0]}' is the first")
    if wrong:
        raise ConfigError(f"{folder}: {'; '.join(wrong)}")
    weight_shapes = shapes(config)
    for name, entries in wanted.items():
        saved_name, saved = saved_as[name]
        stacked = entries[0].layer is not None and name == entries[0].megatron_name
        expected = joined_shape(entries[0].names, weight_shapes)
        expected = (config.n_layers, *expected) if stacked else expected
        _check_tensor(folder, saved_name, saved, expected, padded=name in _PADDED)
        layers = [entry.layer for entry in entries if entry.layer is not None] if stacked else None
        found |= dict(zip(entries, find_slices(folder, saved_name, saved, layers), strict=True))
    return {entry: found[entry] for entry in table(config)}


def _by_usual_names(folder: Path, weights: Mapping[str, SavedTensor]) -> dict[str, tuple[str, SavedTensor]]:
    """Return the tensors under the names of the table, each with the name that it has in the files."""
    found: dict[str, tuple[str, SavedTensor]] = {}
    for name, saved in weights.items():
        usual = name
        for separate, fused in NORMS.items():
            usual = usual.replace(f".{separate}", f".{fused}")
        if usual in found:
            raise ConfigError(f"{folder}: '{found[usual][0]}' and '{name}' are the same tensor of a GPTModel")
        found[usual] = (name, saved)
    return found


def _check_tensor(folder: Path, name: str, saved: SavedTensor, expected: tuple[int, ...], *, padded: bool) -> None:
    """Check shape and dtype. `padded`: there may be more rows than expected."""
    same = saved.shape == expected
    if padded and len(saved.shape) == len(expected):
        same = saved.shape[0] >= expected[0] and saved.shape[1:] == expected[1:]
    if not same:
        raise ConfigError(f"{folder}: '{name}' is {list(saved.shape)}, but {list(expected)} in the described model")
    if saved.dtype not in _EXACT:
        raise ConfigError(f"{folder}: '{name}' is {saved.dtype}. Only float32, float16 and bfloat16 are read.")
