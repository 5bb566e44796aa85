"""Export runs as Hugging Face folders and import such folders, with a progress bar and a report of the verification."""

import functools
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from gpt.convert.hugging_face.export import export
from gpt.convert.hugging_face.logits import LogitCheck, Mode, compare_logits, part_to_compare
from gpt.convert.hugging_face.names import family_of, from_hugging_face, table, to_hugging_face
from gpt.convert.hugging_face.peer import refuse_code
from gpt.convert.hugging_face.source import TITLES, HuggingFaceSource, find_tokenizer, open_source
from gpt.convert.hugging_face.tokenizer import SAMPLES, compare_tokenizers
from gpt.convert.round_trip import main_dtype, round_trip
from gpt.convert.weights import shapes, without_padding
from gpt.errors import ConfigError, install_command
from gpt.files.atomic import partial_folder
from gpt.tokenizer.faults import try_tokenizer
from gpt.tokenizer.tokenizers import Tokenizer
from launch.conversion.sources import (
    check_tokenizer_fits,
    copy_companions,
    dtype_name,
    export_dtype,
    load_foreign_tokenizer,
)
from launch.processes.terminal import tensor_progress
from launch.runs.imported_run import HUGGING_FACE, read_weights, write_run
from launch.runs.saved_run import SavedRun
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint


def export_run(saved: SavedRun, output: Path, *, dtype: str | None = None, mode: Mode = "auto") -> list[str]:
    """Write `output` and verify it; return lines for the user. Errors as `export`."""
    companions = saved.run_directory / HUGGING_FACE
    elements = export_dtype(saved, dtype)
    with tensor_progress("writing tensors", total=len(shapes(saved.model_config))) as advance:
        verification = export(
            saved.weights(),
            saved.model_config,
            output,
            tokenizer=saved.tokenizer,
            tokenizer_file=saved.tokenizer_file,
            dtype=elements,
            companions=companions if companions.is_dir() else None,
            about={"checkpoint": str(saved.checkpoint.path), "step": saved.step, "tokens_seen": saved.tokens_seen},
            mode=mode,
            progress=advance,
        )
    title = TITLES[family_of(saved.model_config)]
    return [
        f"{output}: {title} architecture, {saved.model_config.parameters:,} parameters in {dtype_name(elements)}, "
        f"step {saved.step:,}",
        f"verified: {verification.tensors} tensors bit for bit; {describe_logits(verification.logits)}; "
        f"{verification.texts} texts tokenized equally",
    ]


def import_folder(folder: Path, output: Path, *, tokenizer_file: Path | None = None, mode: Mode = "auto") -> list[str]:
    """Make a run directory of a Hugging Face folder; return lines for the user. Memory: about the largest tensor.

    ConfigError: the folder names code, the architecture is not supported, tensors are missing or unknown, the
    tokenizer does not fit, or the output exists. After an error nothing is at `output`.
    """
    refuse_code(folder)
    source = open_source(folder)
    config, dtype = source.config, dtype_name(main_dtype(source))
    tokenizer_file = find_tokenizer(folder) if tokenizer_file is None else tokenizer_file
    tokenizer = load_foreign_tokenizer(tokenizer_file)
    own = folder / "tokenizer.json"
    if own.is_file() and not own.samefile(tokenizer_file):
        try_tokenizer(own, SAMPLES)  # transformers loads it
    check_tokenizer_fits(tokenizer_file, tokenizer.vocab_size, folder=folder, vocab_size=config.vocab_size)
    texts = _compare_tokenizers(folder, tokenizer, tokenizer_file)
    about: dict[str, object] = {"from": str(folder), "format": source.title, "dtype": dtype}
    names = [name for entry in table(config) for name in entry.names]
    with partial_folder(output) as partial:

        @functools.cache
        def written() -> Checkpoint:
            return verify_checkpoint(partial / "checkpoints" / step_name(0))

        with tensor_progress("writing tensors", total=len(source.tensors)) as advance:
            digests = round_trip(
                source,
                lambda tensors: write_run(
                    partial,
                    from_hugging_face(config, tensors),
                    config=config,
                    tokenizer_file=tokenizer_file,
                    about=about,
                ),
                lambda: to_hugging_face(config, read_weights(written(), names)),
                progress=advance,
            )
        copy_companions(folder, partial / HUGGING_FACE)
        logits = _compare_logits(source, written(), mode)
    compared = f"{texts} texts tokenized equally"
    if texts is None:
        compared = "tokenizers not compared: transformers is not installed"
    return [
        f"{output}: {source.title} architecture, {config.parameters:,} parameters, converted exactly from {dtype} to "
        f"float32; the [model] section of a recipe is in {output / 'model.toml'}",
        f"verified: {len(digests)} tensors back to {folder} bit for bit; {logits}; {compared}",
    ]


def describe_logits(check: LogitCheck | None) -> str:
    """Return the result of comparing logits in one phrase."""
    if check is None:
        return "logits not compared (even one layer needs far more memory than a tensor; --logits whole compares them)"
    part = f"of {check.layers} layers and {check.vocabulary:,} tokens of vocabulary"
    return (
        f"logits {part} within {check.max_relative_error:.1e} of transformers (max |a - b| / max |b|), "
        f"another most likely token at {check.other_choices} of {check.places} positions"
    )


def _compare_logits(source: HuggingFaceSource, checkpoint: Checkpoint, mode: Mode) -> str:
    """Compare the logits of a verified checkpoint with those of transformers, if it is installed."""
    if importlib.util.find_spec("transformers") is None:
        return f"logits not compared: transformers is not installed ({install_command('hf')})"
    config = source.config
    part = part_to_compare(config, mode)
    if part is None:
        return describe_logits(None)

    def read(names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_weights(checkpoint, names):
            yield name, without_padding(config, name, tensor)
            del tensor

    return describe_logits(compare_logits(config, part, folder=source.folder, read=read))


def _compare_tokenizers(folder: Path, tokenizer: Tokenizer, file: Path) -> int | None:
    """Return how many texts both tokenizers encode equally; None: transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    try:
        return compare_tokenizers(folder, tokenizer, imported=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"{file} is not the tokenizer that transformers finds in {folder}: {error}") from None
