"""`triaxial convert`: a run's checkpoint in another library's format; changes nothing in the run."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from gpt.convert.hugging_face import Verification, export
from gpt.convert.names import family_of, shapes
from gpt.errors import ConfigError
from launch.loading import DTYPES, SavedRun, add_run_arguments, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--to", choices=["hf"], required=True, help="hf: a folder that transformers loads")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision of the weights (default: float32)"
    )


def run(args: argparse.Namespace) -> int:
    saved = open_run(args.run, step=args.step)
    for note in saved.notes:
        print(note)
    verification = convert_to_hugging_face(saved, args.output, dtype=args.dtype)
    title = {"gpt2": "GPT-2", "llama": "Llama"}[family_of(saved.model_config)]
    print(f"{args.output}: {title} architecture, {saved.model_config.parameters:,} parameters, step {saved.step:,}")
    print(
        f"verified: {verification.tensors} tensors bit for bit; logits within "
        f"{verification.max_relative_logit_error:.1e} of transformers (max |a - b| / max |b|); "
        f"{verification.texts} texts tokenized alike"
    )
    return 0


def convert_to_hugging_face(saved: SavedRun, output: Path, *, dtype: str = "float32") -> Verification:
    """Write `output` and check it, with a progress bar on standard error; errors as `export`."""
    if output.absolute().is_relative_to(saved.run_directory.absolute() / "checkpoints"):
        raise ConfigError(f"--output {output} lies among the run's checkpoints; name a folder elsewhere")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing tensors", total=len(shapes(saved.model_config)))

        def note(_: str) -> None:
            progress.advance(task)
            if progress.finished:
                progress.update(task, description="reading back and comparing")

        return export(
            saved.weights(),
            saved.model_config,
            output,
            tokenizer=saved.tokenizer,
            tokenizer_file=saved.tokenizer_file,
            dtype=DTYPES[dtype],
            about={"checkpoint": str(saved.checkpoint_path), "step": saved.step, "tokens_seen": saved.tokens_seen},
            progress=note,
        )
