"""The arguments of `triaxial convert`."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.config.run_arguments import EXPORT_DTYPE_NAMES, STEP_HELP, step_argument


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


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    with args.imports():
        from launch.commands import convert

    return convert.run(args)


def _add_details(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that only some conversions take."""
    parser.add_argument(
        "--dtype",
        choices=EXPORT_DTYPE_NAMES,
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


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without the source. A dry run writes nothing."""
    if args.dry_run:
        return
    if args.output is None:
        raise ConfigError("--output is missing: name the new folder")
    if args.dtype is not None and args.to not in ("hf", "megatron"):
        raise ConfigError(
            f"--dtype {args.dtype} is only valid with --to hf or megatron; --to {args.to} keeps the dtypes"
        )
    if args.weights_only and args.to not in ("triaxial", "safetensors"):
        raise ConfigError(f"--weights-only is only valid with --to triaxial or safetensors; --to {args.to} implies it")
