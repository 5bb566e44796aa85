"""`triaxial convert`: convert a model between formats and verify the result. The source is not changed."""

import argparse
from pathlib import Path

from gpt.convert.hugging_face.config import CONFIG
from gpt.convert.hugging_face.peft import is_peft
from gpt.convert.megatron.source import is_megatron
from gpt.errors import ConfigError, escaped
from launch.conversion import hugging_face as convert_hugging_face
from launch.conversion import megatron as convert_megatron
from launch.conversion import peft as convert_peft
from launch.conversion import plain as convert_plain
from launch.conversion.dry_run import describe_size
from launch.conversion.rewrite import rewrite
from launch.conversion.sources import EXPORT_DTYPES
from launch.runs.saved_run import STEP_HELP, open_run, step_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="SOURCE",
        help="a run directory such as runs/demo, one checkpoint in it, a Hugging Face folder, a Megatron-core "
        "checkpoint (torch_dist), a folder of PEFT's files, or plain safetensors (--to safetensors); with --dry-run "
        "also a recipe",
    )
    parser.add_argument("--step", type=step_argument, metavar="N", help=STEP_HELP)
    parser.add_argument(
        "--to",
        choices=["hf", "peft", "megatron", "triaxial", "safetensors"],
        required=True,
        help="hf: a folder that transformers loads, adapters merged; peft: the adapters alone, as PEFT loads them; "
        "megatron: a torch_dist checkpoint of megatron-core's GPTModel; "
        "triaxial: a run directory, which all triaxial commands read; "
        "safetensors: plain files of the checkpoint's tensors under our names, which --to triaxial imports again",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="the new folder (required without --dry-run)")
    _add_details(parser)


def _add_details(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that only some conversions take."""
    parser.add_argument(
        "--dtype",
        choices=EXPORT_DTYPES,
        help="to hf or megatron: dtype of the weights (default: that of the imported model, or float32)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="from hf: a tokenizer instead of the folder's own; from megatron: the model's tokenizer, which Megatron's "
        "checkpoints do not contain",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="RECIPE",
        help="from megatron: a file whose [model] section describes the model, if the checkpoint does not",
    )
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="from PEFT's files: the run of the base model; to peft: the base model's name or path, for "
        "adapter_config.json",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="to triaxial or safetensors: leave out the optimizer's moments"
    )
    parser.add_argument(
        "--logits",
        choices=["auto", "whole", "none"],
        default="auto",
        help="which part of the model is compared with transformers' logits at the end (default: all of a model up to "
        "1 GiB in fp32, else as many layers as keep memory near the largest tensor)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only report what would be read, written and kept in memory"
    )


def run(args: argparse.Namespace) -> int:
    if args.model is not None and not is_megatron(args.run):
        raise ConfigError(f"--model {args.model} is only valid for a Megatron checkpoint, and {args.run} is not one")
    if args.dry_run and (args.to == "peft" or is_peft(args.run)):
        raise ConfigError("--dry-run is invalid with PEFT's files: adapters are small. Leave it out.")
    if args.dry_run:
        for line in describe_size(args):
            print(escaped(line))
        return 0
    if args.output is None:
        raise ConfigError("--output is missing: name the new folder")
    for line in _convert(args):
        print(escaped(line))
    return 0


def _convert(args: argparse.Namespace) -> list[str]:
    """Find out what the source is and convert it; return lines for the user."""
    if args.dtype is not None and args.to not in ("hf", "megatron"):
        raise ConfigError(
            f"--dtype {args.dtype} is only valid with --to hf or megatron; --to {args.to} keeps the dtypes"
        )
    if args.weights_only and args.to not in ("triaxial", "safetensors"):
        raise ConfigError(f"--weights-only is only valid with --to triaxial or safetensors; --to {args.to} implies it")
    if is_peft(args.run) and not (args.run / CONFIG).exists():
        return _import_adapter(args)
    if args.base is not None and args.to != "peft":
        raise ConfigError(f"--base {args.base} is only valid from PEFT's files or with --to peft. Leave it out.")
    from_megatron = is_megatron(args.run)
    if args.logits == "whole" and (from_megatron or args.to == "megatron"):
        raise ConfigError("--logits whole is invalid: Megatron's logits cannot be compared here. Leave it out.")
    if from_megatron:
        _check_import(args, "a Megatron checkpoint")
        return convert_megatron.import_checkpoint(
            args.run, args.output, step=args.step, recipe=args.model, tokenizer_file=args.tokenizer
        )
    if convert_plain.is_plain(args.run):
        if args.to != "triaxial":
            raise ConfigError(f"{args.run} holds plain safetensors. First make a run of it with --to triaxial.")
        if args.step is not None:
            raise ConfigError(f"--step {args.step} is invalid: {args.run} holds a single checkpoint. Leave --step out.")
        return convert_plain.import_plain(args.run, args.output)
    if (args.run / CONFIG).exists() and not (args.run / "checkpoints").is_dir():
        _check_import(args, "a Hugging Face folder")
        return convert_hugging_face.import_folder(
            args.run, args.output, tokenizer_file=args.tokenizer, mode=args.logits
        )
    return _convert_run(args)


def _import_adapter(args: argparse.Namespace) -> list[str]:
    _check_import(args, "a folder of PEFT's files")
    if args.base is None:
        raise ConfigError(f"{args.run} holds adapters only. Name the run of their base model: --base RUN.")
    return convert_peft.import_adapter(args.run, open_run(Path(args.base), step=args.step), args.output)


def _check_import(args: argparse.Namespace, kind: str) -> None:
    if args.to != "triaxial":
        raise ConfigError(f"{args.run} is {kind}. Import it with --to triaxial.")


def _convert_run(args: argparse.Namespace) -> list[str]:
    saved = open_run(args.run, step=args.step)
    for note in saved.notes:
        print(escaped(note))
    if args.output.absolute().is_relative_to(saved.run_directory.absolute() / "checkpoints"):
        raise ConfigError(f"--output {args.output} is inside the run's checkpoints folder. Name a folder elsewhere.")
    if args.to == "hf":
        return convert_hugging_face.export_run(saved, args.output, dtype=args.dtype, mode=args.logits)
    if args.to == "peft":
        return convert_peft.export_adapter(saved, args.output, base=args.base)
    if args.to == "megatron":
        return convert_megatron.export_run(saved, args.output, dtype=args.dtype)
    if args.to == "safetensors":
        return convert_plain.export_plain(saved, args.output, weights_only=args.weights_only)
    return rewrite(saved, args.output, weights_only=args.weights_only)
