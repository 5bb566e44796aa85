"""Runs to Hugging Face folders and back, with a progress bar, and what was verified in words."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gpt.convert.hugging_face.export import COMPANIONS, export
from gpt.convert.hugging_face.logits import LogitCheck, Mode, compare_logits, part_to_compare
from gpt.convert.hugging_face.names import family_of, shapes, table, to_ours, to_theirs
from gpt.convert.hugging_face.source import TITLES, Source, find_tokenizer, open_source
from gpt.convert.hugging_face.tokenizer import compare_tokenizers
from gpt.errors import ConfigError
from gpt.files.atomic import partial_folder
from gpt.files.safetensors import digest
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from launch.processes.terminal import progress_bar
from launch.runs.imported_run import HUGGING_FACE, IMPORTED, read_weights, write_run
from launch.runs.saved_run import DTYPES, SavedRun
from parallel.checkpoint import find as checkpoint

EXPORT_DTYPES = {**DTYPES, "float16": torch.float16}  # a model that came in halves may go as it came


def export_run(saved: SavedRun, output: Path, *, dtype: str | None = None, mode: Mode = "auto") -> list[str]:
    """Write `output` and check it; errors as `export`. Returns what to tell the user."""
    companions = saved.run_directory / HUGGING_FACE
    imported = checkpoint.read_state(saved.checkpoint_path).get(IMPORTED)
    if dtype is None:
        dtype = str(imported["dtype"]) if isinstance(imported, dict) else "float32"
    with progress_bar("writing tensors", total=len(shapes(saved.model_config))) as advance:
        verification = export(
            saved.weights(),
            saved.model_config,
            output,
            tokenizer=saved.tokenizer,
            tokenizer_file=saved.tokenizer_file,
            dtype=EXPORT_DTYPES[dtype],
            companions=companions if companions.is_dir() else None,
            about={"checkpoint": str(saved.checkpoint_path), "step": saved.step, "tokens_seen": saved.tokens_seen},
            mode=mode,
            progress=advance,
        )
    title = TITLES[family_of(saved.model_config)]
    return [
        f"{output}: {title} architecture, {saved.model_config.parameters:,} parameters in {dtype}, step {saved.step:,}",
        f"verified: {verification.tensors} tensors bit for bit; {logits_in_words(verification.logits)}; "
        f"{verification.texts} texts tokenized alike",
    ]


def import_folder(folder: Path, output: Path, *, tokenizer_file: Path | None = None, mode: Mode = "auto") -> list[str]:
    """Make a run directory of a Hugging Face folder. Memory: about the largest tensor.

    ConfigError: an architecture that is not here, tensors missing or unknown, a tokenizer that does not fit, an output
    that exists. Nothing is left at `output` then. Returns what to tell the user.
    """
    source = open_source(folder)
    tokenizer_file = find_tokenizer(folder) if tokenizer_file is None else tokenizer_file
    tokenizer = load_tokenizer(tokenizer_file)
    if tokenizer.vocab_size > source.config.vocab_size:
        raise ConfigError(
            f"{tokenizer_file} has {tokenizer.vocab_size} pieces, but {folder} a vocabulary of "
            f"{source.config.vocab_size}: it is another model's tokenizer"
        )
    texts = _compare_tokenizers(folder, tokenizer, tokenizer_file)
    digests: dict[str, str] = {}
    with partial_folder(output) as partial:
        with progress_bar("writing tensors", total=len(source.tensors)) as advance:
            path = write_run(
                partial,
                to_ours(source.config, _noted(source, digests, advance)),
                config=source.config,
                tokenizer_file=tokenizer_file,
                about={"from": str(folder), "format": source.title, "dtype": _name(source.dtype)},
            )
            (partial / HUGGING_FACE).mkdir()
            for name in COMPANIONS:
                if (folder / name).is_file():
                    (partial / HUGGING_FACE / name).write_bytes((folder / name).read_bytes())
        logits = _verify(source, path, digests, mode)
    compared = (
        "their tokenizer was not compared: no transformers here" if texts is None else f"{texts} texts tokenized alike"
    )
    return [
        f"{output}: {source.title} architecture, {source.config.parameters:,} parameters, {_name(source.dtype)} to "
        f"float32, which holds it exactly; the [model] section of a recipe is in {output / 'model.toml'}",
        f"verified: {len(digests)} tensors back to {folder} bit for bit; {logits}; {compared}",
    ]


def logits_in_words(check: LogitCheck | None) -> str:
    if check is None:
        return "logits not compared (even one layer would need far more memory than a tensor; --logits whole does it)"
    where = f"of {check.layers} layers and {check.vocabulary:,} tokens of vocabulary"
    return (
        f"logits {where} within {check.max_relative_error:.1e} of transformers (max |a - b| / max |b|), "
        f"the likeliest token another at {check.other_choices} of {check.places} places"
    )


def _noted(source: Source, digests: dict[str, str], advance: object) -> Iterator[tuple[str, Tensor]]:
    assert callable(advance)
    for name, tensor in source.read():
        digests[name] = digest(tensor, tensor.dtype)
        yield name, tensor
        del tensor  # or the next one would be read while this one is still held
        advance(name)


def _verify(source: Source, path: Path, digests: dict[str, str], mode: Mode) -> str:
    """The checkpoint's tensors back under their names, in their dtype, bit for bit; then the logits."""
    reason = checkpoint.verify(path)
    assert reason is None, reason
    names = [name for entry in table(source.config) for name in entry.ours]
    for name, tensor in to_theirs(source.config, read_weights(path, names)):
        if digest(tensor, source.tensors[name].dtype) != digests.get(name):
            raise RuntimeError(f"{path}: '{name}' does not come back as {source.folder} has it")
        del tensor
    if importlib.util.find_spec("transformers") is None:
        return "logits not compared: no transformers here (pip install 'triaxial[hf]')"
    part = part_to_compare(source.config, mode)
    if part is None:
        return logits_in_words(None)

    def read(wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_weights(path, wanted):
            yield name, tensor[: shapes(source.config)[name][0]]
            del tensor

    return logits_in_words(compare_logits(source.config, part, folder=source.folder, read=read))


def _compare_tokenizers(folder: Path, tokenizer: Tokenizer, file: Path) -> int | None:
    if importlib.util.find_spec("transformers") is None:
        return None
    try:
        return compare_tokenizers(folder, tokenizer, as_it_came=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{file} is not the tokenizer that transformers finds in {folder}: {error}") from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
