"""Open a Hugging Face folder as a source of tensors: check all names and shapes first, then read one at a time.

Only safetensors files are read, and nothing that the folder names is run.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.config import CONFIG, model_config
from gpt.convert.hugging_face.names import family_of, table
from gpt.convert.weights import check_finite, shapes
from gpt.errors import ConfigError
from gpt.files.safetensors import TensorLocation, TensorSpec, digest, read_tensor
from gpt.files.safetensors_folder import read_folder
from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import check_layer_count

TITLES = {"gpt2": "GPT-2", "llama": "Llama"}
HEAD = "lm_head.weight"
_PREFIX = {"gpt2": "transformer.", "llama": "model."}  # missing in a model that was saved without its head
_EMBEDDING = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}
# Older files also store causal masks and rotary frequencies, which follow from the configuration.
_NO_WEIGHTS = re.compile(
    r"transformer\.h\.\d+\.attn\.(masked_)?bias|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
_EXACT = (torch.float32, torch.float16, torch.bfloat16)  # our checkpoints store fp32, which holds all of these exactly
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class HuggingFaceSource:
    """A Hugging Face model whose tensors, under their Hugging Face names, stay on disk until they are read."""

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorLocation]  # in the order of names.table

    @property
    def title(self) -> str:
        """Name of the architecture, for messages."""
        return TITLES[family_of(self.config)]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each tensor."""
        return {name: TensorSpec(location.shape, location.dtype) for name, location in self.tensors.items()}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Read the Hugging Face pairs (name, tensor), one at a time. ConfigError: one contains NaN or infinity."""
        for name, location in self.tensors.items():
            yield name, check_finite(name, read_tensor(location), where=str(location.file))

    def read_weights(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Read our weights of these names, in the order of the table, without vocabulary padding."""
        wanted, weight_shapes = set(names), shapes(self.config)
        for entry in table(self.config):
            if wanted.isdisjoint(entry.names):
                continue
            for name, part in entry.split(read_tensor(self.tensors[entry.hf_name]), weight_shapes):
                if name in wanted:
                    yield name, part
                del part


def open_source(folder: Path) -> HuggingFaceSource:
    """Read everything except the weights, and compare names, shapes and dtypes with config.json.

    ConfigError: there is no such folder, the architecture is not supported, the folder has no safetensors files, or
    tensors are missing, unknown or have another shape.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    config = model_config(folder)
    family = family_of(config)
    found = read_folder(folder)
    if not any(name.startswith(_PREFIX[family]) for name in found):
        found = {name if name == HEAD else _PREFIX[family] + name: location for name, location in found.items()}
    found = {name: location for name, location in found.items() if not _NO_WEIGHTS.fullmatch(name)}
    check_layer_count(config, len(found), where=str(folder / CONFIG))
    if config.tied and HEAD in found:
        _check_tied(folder, found[HEAD], found.get(_EMBEDDING[family]))
        del found[HEAD]
    _check_complete(folder, config, found)
    return HuggingFaceSource(folder, config, {entry.hf_name: found[entry.hf_name] for entry in table(config)})


def find_tokenizer(folder: Path) -> Path:
    """Return the folder's tokenizer file. ConfigError: it has none."""
    for names in _TOKENIZERS:
        if all((folder / name).is_file() for name in names):
            return folder / names[-1]
    known = ", ".join(" with ".join(names) for names in _TOKENIZERS)
    raise ConfigError(f"{folder} holds no tokenizer ({known}). Copy the model's there, or name one with --tokenizer.")


def _check_complete(folder: Path, config: ModelConfig, found: dict[str, TensorLocation]) -> None:
    weight_shapes = shapes(config)
    expected = {entry.hf_name: entry.shape(weight_shapes) for entry in table(config)}
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    described = f"the {TITLES[family_of(config)]} that {CONFIG} describes"
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} tensors of {described} are missing, '{missing[0]}' is the first")
    if unknown:
        wrong.append(f"{len(unknown)} tensors are unknown to {described}, '{unknown[0]}' is the first")
    if wrong:
        raise ConfigError(f"{folder}: {'; '.join(wrong)}")
    for name, shape in expected.items():
        location = found[name]
        if location.shape != shape:
            raise ConfigError(f"{folder}: '{name}' is {list(location.shape)}, but {list(shape)} in {described}")
        if location.dtype not in _EXACT:
            raise ConfigError(f"{folder}: '{name}' is {location.dtype}. Only float32, float16 and bfloat16 are read.")


def _check_tied(folder: Path, head: TensorLocation, embedding: TensorLocation | None) -> None:
    """Check that a tied head that is stored nevertheless equals the embedding."""
    if embedding is None or head.shape != embedding.shape:
        return  # _check_complete reports this
    if digest(read_tensor(head), torch.float32) != digest(read_tensor(embedding), torch.float32):
        raise ConfigError(
            f"{folder}: {CONFIG} sets tie_word_embeddings, but '{HEAD}' differs from the embedding. Set it to false "
            "there."
        )
