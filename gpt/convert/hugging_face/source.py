"""A Hugging Face folder as a source of tensors: all names and shapes checked first, then read one at a time.

Only safetensors files are read. Nothing that the folder says is run.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.config import CONFIG, model_config
from gpt.convert.hugging_face.names import family_of, shapes, table, their_shape
from gpt.errors import ConfigError
from gpt.files.safetensors import TensorLocation, digest, read_folder, read_tensor
from gpt.model.config import ModelConfig

TITLES = {"gpt2": "GPT-2", "llama": "Llama"}
HEAD = "lm_head.weight"
_PREFIX = {"gpt2": "transformer.", "llama": "model."}  # which a model saved without its head leaves out
_EMBEDDING = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}
# What older files hold besides weights: causal masks and the frequencies of rotary positions, which follow from sizes.
_NO_WEIGHTS = re.compile(
    r"transformer\.h\.\d+\.attn\.(masked_)?bias|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # fp32, in which checkpoints keep weights, holds them exactly
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class Source:
    """A model of another library: its tensors, under its own names, stay on disk until they are read."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorLocation]  # in the order of the table

    @property
    def title(self) -> str:
        return TITLES[family_of(self.config)]

    @property
    def dtype(self) -> torch.dtype:
        """In which most of the elements are."""
        sizes: Counter[torch.dtype] = Counter()
        for stored in self.tensors.values():
            sizes[stored.dtype] += stored.size_bytes
        return sizes.most_common(1)[0][0]

    @property
    def size_bytes(self) -> int:
        return sum(stored.size_bytes for stored in self.tensors.values())

    @property
    def largest_bytes(self) -> int:
        return max(stored.size_bytes for stored in self.tensors.values())

    def read(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Their (name, tensor) pairs, one at a time."""
        for name in self.tensors if names is None else names:
            yield name, read_tensor(self.tensors[name])


def open_source(folder: Path) -> Source:
    """Read everything but the weights, and compare names, shapes and dtypes with what config.json describes.

    ConfigError: no such folder, an architecture that is not here, no safetensors, tensors missing, unknown or of
    another shape.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    config = model_config(folder)
    family = family_of(config)
    found = read_folder(folder)
    if not any(name.startswith(_PREFIX[family]) for name in found):
        found = {name if name == HEAD else _PREFIX[family] + name: stored for name, stored in found.items()}
    found = {name: stored for name, stored in found.items() if not _NO_WEIGHTS.fullmatch(name)}
    if config.tied and HEAD in found:
        _check_tied(folder, found[HEAD], found.get(_EMBEDDING[family]))
        del found[HEAD]
    _check_complete(folder, config, found)
    return Source(folder, config, {entry.theirs: found[entry.theirs] for entry in table(config)})


def find_tokenizer(folder: Path) -> Path:
    """The folder's tokenizer file. ConfigError: it has none."""
    for names in _TOKENIZERS:
        if all((folder / name).is_file() for name in names):
            return folder / names[-1]
    known = ", ".join(" with ".join(names) for names in _TOKENIZERS)
    raise ConfigError(f"{folder} holds no tokenizer ({known}); copy the model's there, or name one with --tokenizer")


def _check_complete(folder: Path, config: ModelConfig, found: dict[str, TensorLocation]) -> None:
    ours = shapes(config)
    expected = {entry.theirs: their_shape(entry, ours) for entry in table(config)}
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    described = f"the {TITLES[family_of(config)]} that {CONFIG} describes"
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} tensors of {described} are missing, '{missing[0]}' the first")
    if unknown:
        wrong.append(f"{len(unknown)} tensors are unknown to {described}, '{unknown[0]}' the first")
    if wrong:
        raise ConfigError(f"{folder}: {'; '.join(wrong)}")
    for name, shape in expected.items():
        stored = found[name]
        if stored.shape != shape:
            raise ConfigError(f"{folder}: '{name}' is {list(stored.shape)}, but {list(shape)} in {described}")
        if stored.dtype not in _EXACT:
            raise ConfigError(f"{folder}: '{name}' is {stored.dtype}; float32, float16 and bfloat16 are read")


def _check_tied(folder: Path, head: TensorLocation, embedding: TensorLocation | None) -> None:
    """A tied head that is there all the same must be the embedding."""
    if embedding is None or head.shape != embedding.shape:
        return  # told with the other names and shapes
    if digest(read_tensor(head), torch.float32) != digest(read_tensor(embedding), torch.float32):
        raise ConfigError(
            f"{folder}: {CONFIG} says tie_word_embeddings, but '{HEAD}' is not the embedding; set it to false there"
        )
