"""`triaxial recipe from-deepspeed`: print a recipe for a DeepSpeed configuration."""

import argparse
from pathlib import Path

from launch.engines.from_deepspeed import recipe_from_deepspeed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.epilog = (
        "The recipe names the keys to fill in, and every key of the configuration without a counterpart. Keys of the "
        "recipe can be given too: --SECTION.KEY VALUE. With --data.seq_len, steps become tokens."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.json", help="the file that deepspeed.initialize reads")


def run(args: argparse.Namespace) -> int:
    print(recipe_from_deepspeed(args.config, args.overrides), end="")
    return 0
