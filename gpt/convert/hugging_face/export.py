"""Write a Hugging Face folder that `transformers` loads as it is, and verify it.

The folder gets its name only after it was read back: every tensor bit for bit, the logits against `transformers`, the
tokenizer against ours. No remote code is run and no pickle is read or written.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.config import CONFIG, config_json, keeps, read_settings
from gpt.convert.hugging_face.logits import LogitCheck, Mode, compare_logits, part_to_compare
from gpt.convert.hugging_face.names import family_of, table, to_hugging_face
from gpt.convert.hugging_face.source import open_source
from gpt.convert.hugging_face.tokenizer import compare_tokenizers, write_tokenizer
from gpt.convert.round_trip import round_trip
from gpt.convert.weights import GivenWeights, shapes
from gpt.errors import import_extra
from gpt.files.atomic import partial_folder
from gpt.files.regular import copy_file
from gpt.files.safetensors import write_model
from gpt.model.config import ModelConfig
from gpt.tokenizer.tokenizers import Tokenizer, tokenizer_files

# Text files that belong to a model besides weights and tokenizer. We run none of them.
COMPANIONS = (
    *(CONFIG, "generation_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
# Keys that other versions of transformers use for a setting that config_json writes under another key.
_OTHER_WORDS = ("torch_dtype", "rope_scaling", "rope_parameters", "transformers_version", "n_ctx", "_name_or_path")


@dataclass(frozen=True)
class Verification:
    """Results of reading the written folder back. `logits`: None if they were not compared."""

    tensors: int  # compared, all equal bit for bit
    texts: int  # number of texts compared; all had equal ids and equal decoded text
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
    """Write our (name, weight) pairs, in any order, as a Hugging Face folder. They are consumed one at a time.

    `companions`: the folder with the other files of an imported model; its special tokens, chat template and the like
    are exported again. `mode`: which part of the logits is compared. `progress` is called with the name of each weight
    written. `about` and the verification are saved in triaxial_export.json.

    ConfigError: no architecture expresses the model, the output exists, a weight is missing, unknown or has another
    shape, the tokenizer cannot be expressed, or `transformers` is not installed. After an error nothing is at `output`.
    """
    family_of(config)
    import_extra("transformers", extra="hf")
    weight_shapes = shapes(config)
    hf_shapes = {entry.hf_name: entry.shape(weight_shapes) for entry in table(config)}
    with partial_folder(output) as folder:
        if companions is None:
            write_configs(folder, config, end_of_document_id=tokenizer.end_of_document_id, dtype=dtype)
            write_tokenizer(tokenizer_file, folder, tokenizer=tokenizer, n_ctx=config.n_ctx)
        else:
            _copy_companions(companions, folder, config, tokenizer_file=tokenizer_file, dtype=dtype)
        digests = round_trip(
            GivenWeights(config, tensors, dtype),
            lambda pairs: write_model(folder, to_hugging_face(config, pairs), shapes=hf_shapes, dtype=dtype),
            lambda: open_source(folder).read_weights(weight_shapes),
            progress=progress,
        )
        texts = compare_tokenizers(folder, tokenizer, imported=companions is not None)
        part = part_to_compare(config, mode)
        logits = None
        if part is not None:
            logits = compare_logits(config, part, folder=folder, read=open_source(folder).read_weights)
        verification = Verification(tensors=len(digests), texts=texts, logits=logits)
        report = {**asdict(verification), "max_relative_logit_error": verification.max_relative_logit_error}
        _write_json(folder / "triaxial_export.json", {**(about or {}), **report})
    return verification


def write_configs(folder: Path, config: ModelConfig, *, end_of_document_id: int, dtype: torch.dtype) -> None:
    """Write config.json and generation_config.json. Texts also begin with the end-of-document token."""
    specials = {"bos_token_id": end_of_document_id, "eos_token_id": end_of_document_id}
    _write_json(folder / CONFIG, {**config_json(config, dtype=dtype), **specials})
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **specials})


def _copy_companions(
    companions: Path, folder: Path, config: ModelConfig, *, tokenizer_file: Path, dtype: torch.dtype
) -> None:
    """Copy the files that came with an imported model; config.json gets the sizes of the present model."""
    for name in COMPANIONS:
        if (companions / name).is_file():
            copy_file(companions / name, folder / name)
    for file in tokenizer_files(tokenizer_file):
        shutil.copyfile(file, folder / file.name)
    before = {key: value for key, value in read_settings(companions).items() if key not in _OTHER_WORDS}
    ours = {key: value for key, value in config_json(config, dtype=dtype).items() if not keeps(before, key)}
    _write_json(folder / CONFIG, {**before, **ours})


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
