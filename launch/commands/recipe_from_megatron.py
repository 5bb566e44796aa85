"""`triaxial recipe from-megatron`: print a recipe for the flags of a Megatron-LM training command."""

import argparse

from gpt.errors import ConfigError
from launch.engines.from_megatron import recipe_from_megatron


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.epilog = (
        "The recipe names every flag without a counterpart. Keys of the recipe can be given too: --SECTION.KEY VALUE. "
        "Show this help with `triaxial recipe from-megatron help`."
    )
    # No flag of this command may hide one of Megatron's, so that argparse takes all of them as words.
    parser.prefix_chars = "\0"
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="flags of pretrain_gpt.py, such as --num-layers 12")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    if args.flags in ([], ["help"], ["--help"], ["-h"]):
        if not args.flags:
            raise ConfigError("triaxial recipe from-megatron needs the flags of a command, such as --num-layers 12")
        args.parser.print_help()
        return 0
    print(recipe_from_megatron(args.flags, args.overrides), end="")
    return 0
