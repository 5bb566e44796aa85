"""`triaxial convert`: a model from one format into another, checked at the end; changes nothing in what it reads."""

import argparse
from pathlib import Path

from gpt.convert.hugging_face.config import CONFIG
from gpt.convert.megatron.source import is_megatron
from gpt.errors import ConfigError
from launch.conversion import hugging_face as convert_hugging_face
from launch.conversion import megatron as convert_megatron
from launch.conversion import plain as convert_plain
from launch.conversion import rewrite as convert_triaxial
from launch.conversion.dry_run import describe_size
from launch.runs.saved_run import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="SOURCE",
        help="a run directory such as runs/demo, one checkpoint in it, a Hugging Face folder, a Megatron-core "
        "checkpoint (torch_dist), or plain safetensors (--to safetensors); with --dry-run also a recipe",
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest whole)")
    parser.add_argument(
        "--to",
        choices=["hf", "megatron", "triaxial", "safetensors"],
        required=True,
        help="hf: a folder that transformers loads; megatron: a torch_dist checkpoint of megatron-core's GPTModel; "
        "triaxial: a run directory that every command here takes; "
        "safetensors: plain files of the checkpoint's tensors under our names, which --to triaxial takes back",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder to make (needed without --dry-run)")
    parser.add_argument(
        "--dtype",
        choices=convert_hugging_face.EXPORT_DTYPES,
        help="to hf or megatron: precision of the weights (default: what was imported, or float32)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="from hf: instead of the folder's own; from megatron: the model's, since Megatron's checkpoints hold none",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="RECIPE",
        help="from megatron: a file whose [model] section says what the model is, where the checkpoint does not",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="to triaxial or safetensors: without the optimizer's moments"
    )
    parser.add_argument(
        "--logits",
        choices=["auto", "whole", "none"],
        default="auto",
        help="how much is compared with transformers' logits at the end (default: all of a model up to 1 GiB in fp32, "
        "else as many layers as keep memory near the largest tensor)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be read, written and held in memory"
    )


def run(args: argparse.Namespace) -> int:
    if args.model is not None and not is_megatron(args.run):
        raise ConfigError(f"--model {args.model} goes with a Megatron checkpoint; {args.run} is none")
    if args.dry_run:
        for line in describe_size(args):
            print(line)
        return 0
    if args.output is None:
        raise ConfigError("--output DIR is missing: the folder to make")
    for line in _convert(args):
        print(line)
    return 0


def _convert(args: argparse.Namespace) -> list[str]:
    """Find out what the source is, and have it converted; what to tell the user."""
    if args.dtype is not None and args.to not in ("hf", "megatron"):
        raise ConfigError(
            f"--dtype {args.dtype} goes with --to hf or megatron; --to {args.to} leaves every tensor as it is"
        )
    if args.weights_only and args.to not in ("triaxial", "safetensors"):
        raise ConfigError(f"--weights-only goes with --to triaxial or safetensors; --to {args.to} takes weights alone")
    from_megatron = is_megatron(args.run)
    if args.logits == "whole" and (from_megatron or args.to == "megatron"):
        raise ConfigError("--logits whole: Megatron's logits are compared nowhere here; leave it out")
    if from_megatron:
        _check_import(args, "a Megatron checkpoint")
        return convert_megatron.import_checkpoint(
            args.run, args.output, step=args.step, recipe=args.model, tokenizer_file=args.tokenizer
        )
    if convert_plain.is_plain(args.run):
        if args.to != "triaxial":
            raise ConfigError(f"{args.run} holds plain safetensors; make a run of it first, with --to triaxial")
        if args.step is not None:
            raise ConfigError(f"--step {args.step}: {args.run} holds one checkpoint alone; leave --step out")
        return convert_plain.import_plain(args.run, args.output)
    if (args.run / CONFIG).is_file() and not (args.run / "checkpoints").is_dir():
        _check_import(args, "a Hugging Face folder")
        return convert_hugging_face.import_folder(
            args.run, args.output, tokenizer_file=args.tokenizer, mode=args.logits
        )
    return _convert_run(args)


def _check_import(args: argparse.Namespace, kind: str) -> None:
    if args.to != "triaxial":
        raise ConfigError(f"{args.run} is {kind}; import it with --to triaxial")


def _convert_run(args: argparse.Namespace) -> list[str]:
    saved = open_run(args.run, step=args.step)
    for note in saved.notes:
        print(note)
    if args.output.absolute().is_relative_to(saved.run_directory.absolute() / "checkpoints"):
        raise ConfigError(f"--output {args.output} lies among the run's checkpoints; name a folder elsewhere")
    if args.to == "hf":
        return convert_hugging_face.export_run(saved, args.output, dtype=args.dtype, mode=args.logits)
    if args.to == "megatron":
        return convert_megatron.export_run(saved, args.output, dtype=args.dtype)
    if args.to == "safetensors":
        return convert_plain.export_plain(saved, args.output, weights_only=args.weights_only)
    return convert_triaxial.rewrite(saved, args.output, weights_only=args.weights_only)
