"""Writes a Hugging Face folder that `transformers` loads as it is, and proves it; never runs remote code or pickles.

The folder appears under its name only after it has been read back: every tensor bit for bit, the logits against
`transformers`, the tokenizer against ours.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.config import CONFIG, config_json, read_settings
from gpt.convert.hugging_face.logits import LogitCheck, Mode, compare_logits, part_to_compare
from gpt.convert.hugging_face.names import family_of, shapes, table, their_shape, to_theirs
from gpt.convert.hugging_face.source import Source, open_source
from gpt.convert.hugging_face.tokenizer import compare_tokenizers, write_tokenizer
from gpt.errors import import_extra
from gpt.files.atomic import partial_folder
from gpt.files.safetensors import digest, write_model
from gpt.model.config import ModelConfig
from gpt.tokenizer.tokenizers import Tokenizer, tokenizer_files

# What travels with a model besides weights and tokenizer; text that nothing of ours runs.
COMPANIONS = (
    *(CONFIG, "generation_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
# Keys of a config.json that say the same as one of ours in the words of another version of transformers.
_OTHER_WORDS = ("torch_dtype", "rope_scaling", "rope_parameters", "transformers_version", "n_ctx", "_name_or_path")


@dataclass(frozen=True)
class Verification:
    """What was found when the written folder was read back. `logits`: None where they were not compared."""

    tensors: int  # equal bit for bit to the ones given
    texts: int  # tokenized alike and decoded alike
    logits: LogitCheck | None

    @property
    def max_relative_logit_error(self) -> float | None:
        return None if self.logits is None else self.logits.max_relative_error


def export(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    output: Path,
    *,
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    dtype: torch.dtype = torch.float32,
    companions: Path | None = None,
    about: dict[str, object] | None = None,
    mode: Mode = "auto",
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Write our (name, tensor) pairs, in any order, as a Hugging Face folder; they are consumed one at a time.

    `companions`: the folder of what else an imported model came with; its ids of special tokens, its chat template and
    the like go back with it. `mode`: how much of the logits is compared. `progress` is called with the
    name of each tensor written; `about` and the verification are left in triaxial_export.json. ConfigError:
    a model no architecture expresses, an output that exists, tensors missing, unknown or of another shape, a tokenizer
    that cannot be expressed, or no `transformers`. Nothing is left at `output` unless all of it is right.
    """
    family_of(config)
    import_extra("transformers", extra="hf")
    with partial_folder(output) as folder:
        if companions is None:
            write_configs(folder, config, end_of_document_id=tokenizer.end_of_document_id, dtype=dtype)
            write_tokenizer(tokenizer_file, folder, tokenizer=tokenizer, n_ctx=config.n_ctx)
        else:
            _bring_back(companions, folder, config, tokenizer_file=tokenizer_file, dtype=dtype)
        digests: dict[str, str] = {}
        ours = shapes(config)
        write_model(
            folder,
            to_theirs(config, _noted(tensors, config, dtype, digests, progress)),
            shapes={entry.theirs: their_shape(entry, ours) for entry in table(config)},
            dtype=dtype,
        )
        texts = compare_tokenizers(folder, tokenizer, as_it_came=companions is not None)
        verification = verify(folder, config, texts=texts, digests=digests, mode=mode)
        report = {**asdict(verification), "max_relative_logit_error": verification.max_relative_logit_error}
        _write_json(folder / "triaxial_export.json", {**(about or {}), **report})
    return verification


def verify(
    folder: Path, config: ModelConfig, *, texts: int, digests: dict[str, str], mode: Mode = "auto"
) -> Verification:
    """Read a folder back through the table and through `transformers`, and compare.

    `digests`: SHA-256 of each of our tensors. RuntimeError when something differs: that is a defect of ours.
    """
    source = open_source(folder)
    for name, tensor in read_ours(source, shapes(config)):
        if digest(tensor, tensor.dtype) != digests[name]:
            raise RuntimeError(f"{folder}: the tensor '{name}' did not come back as it was written")
        del tensor
    part = part_to_compare(config, mode)
    logits = None
    if part is not None:
        logits = compare_logits(config, part, folder=folder, read=lambda names: read_ours(source, names))
    return Verification(tensors=len(digests), texts=texts, logits=logits)


def read_ours(source: Source, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors of these names out of theirs, in the order of the table."""
    wanted, ours = set(names), shapes(source.config)
    for entry in table(source.config):
        if wanted.isdisjoint(entry.ours):
            continue
        for _, tensor in source.read([entry.theirs]):
            turned = tensor.T if entry.transposed else tensor
            del tensor
            for name, part in zip(entry.ours, torch.split(turned, [ours[name][0] for name in entry.ours]), strict=True):
                if name in wanted:
                    yield name, part
            del turned, part


def write_configs(folder: Path, config: ModelConfig, *, end_of_document_id: int, dtype: torch.dtype) -> None:
    """config.json and generation_config.json. A document's end also stands where a text begins."""
    specials = {"bos_token_id": end_of_document_id, "eos_token_id": end_of_document_id}
    _write_json(folder / CONFIG, {**config_json(config, dtype=dtype), **specials})
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **specials})


def _bring_back(
    companions: Path, folder: Path, config: ModelConfig, *, tokenizer_file: Path, dtype: torch.dtype
) -> None:
    """What an imported model came with; sizes in config.json are the model's of now."""
    for name in COMPANIONS:
        if (companions / name).is_file():
            shutil.copyfile(companions / name, folder / name)
    for file in tokenizer_files(tokenizer_file):
        shutil.copyfile(file, folder / file.name)
    before = {key: value for key, value in read_settings(companions).items() if key not in _OTHER_WORDS}
    _write_json(folder / CONFIG, {**before, **config_json(config, dtype=dtype)})


def _noted(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    dtype: torch.dtype,
    digests: dict[str, str],
    progress: Callable[[str], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they pass, the digest of each left in `digests`."""
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    for name, tensor in tensors:
        digests[name] = digest(tensor[: rows.get(name)], dtype)
        yield name, tensor
        del tensor  # or the next one would be read while this one is still held
        if progress is not None:
            progress(name)


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
