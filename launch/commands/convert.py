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
from launch.runs.saved_run import open_run


def run(args: argparse.Namespace) -> int:
    if args.model is not None and not is_megatron(args.run):
        raise ConfigError(f"--model {args.model} is only valid for a Megatron checkpoint, and {args.run} is not one")
    if args.dry_run and (args.to == "peft" or is_peft(args.run)):
        raise ConfigError("--dry-run is invalid with PEFT's files: adapters are small. Leave it out.")
    if args.dry_run:
        for line in describe_size(args):
            print(escaped(line))
        return 0
    for line in _convert(args):
        print(escaped(line))
    return 0


def _convert(args: argparse.Namespace) -> list[str]:
    """Find out what the source is and convert it; return lines for the user."""
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
