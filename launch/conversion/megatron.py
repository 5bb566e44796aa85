"""Export runs as Megatron-core checkpoints (torch_dist, GPTModel) and import such checkpoints, and verify both.

OUT/latest_checkpointed_iteration.txt   "release": Megatron-LM's --load reads this file
OUT/release/                            megatron-core's dist_checkpointing.load reads this folder, on any layout
OUT/tokenizer/                          the tokenizer's files, which Megatron keeps elsewhere
OUT/hugging_face/                       other files of an imported Hugging Face model, such as its chat template
"""

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gpt.convert.megatron.config import COMMON, arguments_of
from gpt.convert.megatron.names import (
    MegatronEntry,
    check_expressible,
    from_megatron,
    object_names,
    stacked_shapes,
    to_megatron,
)
from gpt.convert.megatron.source import ABOUT, TRACKER, MegatronSource, check_format, find_checkpoint, open_source
from gpt.convert.round_trip import main_dtype, round_trip
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist
from gpt.convert.torch_formats.pickle_as_data import PickledObject, encode
from gpt.convert.torch_formats.torch_archive import write_archive
from gpt.convert.weights import GivenWeights, shapes
from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.model.config import ModelConfig
from launch.config.recipe import build, find_recipe, read_toml
from launch.conversion.sources import (
    check_tokenizer_fits,
    copy_companions,
    copy_tokenizer,
    dtype_name,
    export_dtype,
    load_foreign_tokenizer,
    verified_weights,
)
from launch.processes.terminal import tensor_progress
from launch.runs.imported_run import HUGGING_FACE, write_run
from launch.runs.saved_run import SavedRun
from parallel.checkpoint.folders import step_name

RELEASE = "release"  # Megatron-LM's name for a checkpoint that it did not train itself
NOT_COMPARED = (
    "logits not compared: Megatron's model runs on CUDA devices "
    "(docs/guides/models/megatron.md lists what was compared there)"
)


def read_model(recipe: Path) -> ModelConfig:
    """Return the [model] section of a recipe, or of a file with nothing else. ConfigError: it has none."""
    path = find_recipe(str(recipe))
    section = read_toml(path).get("model")
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no [model] section")
    return build(ModelConfig, section, where="model")


def open_checkpoint(
    folder: Path, *, step: int | None = None, recipe: Path | None = None, tokenizer_size: int | None = None
) -> MegatronSource:
    """Read and check everything except the weights of a Megatron checkpoint. Errors as `open_source`."""
    model = None if recipe is None else read_model(recipe)
    return open_source(find_checkpoint(folder, step), model=model, tokenizer_size=tokenizer_size)


def import_checkpoint(
    folder: Path,
    output: Path,
    *,
    step: int | None = None,
    recipe: Path | None = None,
    tokenizer_file: Path | None = None,
) -> list[str]:
    """Make a run directory of a Megatron checkpoint; return lines for the user.

    Memory: about the largest tensor of one layer. ConfigError: as `open_source`; there is no tokenizer or it does not
    fit; the output exists. After an error nothing is at `output`.
    """
    check_format(find_checkpoint(folder, step))
    tokenizer_file = _tokenizer_file(folder, tokenizer_file)
    size = load_foreign_tokenizer(tokenizer_file).vocab_size
    source = open_checkpoint(folder, step=step, recipe=recipe, tokenizer_size=size)
    config, dtype = source.config, dtype_name(main_dtype(source))
    check_tokenizer_fits(tokenizer_file, size, folder=source.folder, vocab_size=config.vocab_size)
    about: dict[str, object] = {"from": str(source.folder), "format": "Megatron", "dtype": dtype}
    names = [name for entry in source.slices for name in entry.names]
    with partial_folder(output) as partial, tensor_progress("writing tensors", total=len(source.slices)) as advance:
        path = partial / "checkpoints" / step_name(0)
        digests = round_trip(
            source,
            lambda tensors: write_run(
                partial,
                from_megatron(config, tensors),
                config=config,
                tokenizer_file=tokenizer_file,
                about=about,
                order=names,
            ),
            lambda: ((entry.title, tensor) for entry, tensor in to_megatron(config, verified_weights(path, names))),
            progress=advance,
        )
        copy_companions(folder / HUGGING_FACE, partial / HUGGING_FACE)
    return [
        *source.notes,
        f"{output}: Megatron's GPTModel, {config.parameters:,} parameters, converted exactly from {dtype} to float32; "
        f"the [model] section of a recipe is in {output / 'model.toml'}",
        f"verified: {len(digests)} tensors back to {source.folder} bit for bit; {NOT_COMPARED}",
    ]


def export_run(saved: SavedRun, output: Path, *, dtype: str | None = None) -> list[str]:
    """Write `output` and read it back; return lines for the user. Memory: about the largest tensor of one layer.

    ConfigError: GPTModel cannot be this model, or the output exists. After an error nothing is at `output`.
    """
    config = saved.model_config
    check_expressible(config)
    elements = export_dtype(saved, dtype)
    with partial_folder(output) as partial, tensor_progress("writing tensors", total=len(shapes(config))) as advance:
        folder = partial / RELEASE
        folder.mkdir()
        _write_arguments(folder, config)

        def read_back() -> Iterator[tuple[str, Tensor]]:
            return from_megatron(config, open_source(folder, model=config).read())

        digests = round_trip(
            GivenWeights(config, saved.weights(), elements),
            lambda weights: write_torch_dist(
                folder,
                (_part(entry, tensor) for entry, tensor in to_megatron(config, weights)),
                shapes=stacked_shapes(config),
                dtype=elements,
                objects=object_names(config),
            ),
            read_back,
            progress=advance,
        )
        (partial / TRACKER).write_text(RELEASE)
        copy_tokenizer(saved, partial)
        copy_companions(saved.run_directory / HUGGING_FACE, partial / HUGGING_FACE)
    return [
        f"{output}: Megatron's GPTModel, {config.parameters:,} parameters in {dtype_name(elements)}, step "
        f"{saved.step:,}; dist_checkpointing.load reads {output / RELEASE}",
        f"verified: {len(digests)} tensors bit for bit; {NOT_COMPARED}",
    ]


def _tokenizer_file(folder: Path, named: Path | None) -> Path:
    """Return the file that the user names, or the tokenizer folder that our export put next to the checkpoint."""
    exported = folder / "tokenizer"
    if named is None and not exported.is_dir():
        raise ConfigError(f"{folder} holds no tokenizer, which is usual for Megatron. Name one with --tokenizer FILE.")
    return exported if named is None else named


def _part(entry: MegatronEntry, tensor: Tensor) -> Part:
    offsets = (0,) * tensor.dim() if entry.layer is None else (entry.layer, *(0,) * tensor.dim())
    return Part(entry.megatron_name, offsets, tensor)


def _write_arguments(folder: Path, config: ModelConfig) -> None:
    """Write the other files that Megatron reads: its arguments, and the format of the checkpoint."""
    arguments = PickledObject("argparse.Namespace", (), arguments_of(config))
    with open(folder / COMMON, "xb") as file:
        write_archive(file, encode({"args": arguments, "checkpoint_version": 3.0, "iteration": 0}))
    about = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    about |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / ABOUT).write_text(json.dumps(about))
