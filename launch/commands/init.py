"""`triaxial init`: look at a person's texts, and write a recipe for the corpus and one for the training."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gpt.errors import ConfigError, escaped
from launch.commands.data.prepare import import_packages
from launch.processes.terminal import table_console

_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FOLDER_OR_FILE_OR_URL",
        help="texts, Markdown, HTML, JSON lines, Parquet or web archives; a data set such as hf://datasets/OWNER/NAME",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of all that is made (default: runs/NAME)")
    parser.add_argument(
        "--preset",
        choices=("curated", "web"),
        help="curated: drop exact copies only (default); web: all filters for web pages (default for web archives)",
    )
    size = parser.add_argument_group("size and length (docs/tutorials/your_own_data.md)")
    size.add_argument("--params", type=_count, metavar="N", help="the model's parameters, such as 30M")
    size.add_argument("--depth", type=int, metavar="LAYERS", help="the model's layers instead; its width is 64 a layer")
    size.add_argument(
        "--tokens", type=_tokens, metavar="N", help="tokens to train on, such as 2B; chinchilla: 20 a parameter"
    )
    size.add_argument(
        "--time",
        type=_duration,
        metavar="T",
        help="train for this time, such as 2h, by this machine's measured speed",
    )
    size.add_argument("--nproc", type=int, metavar="N", help="processes (default: one for each GPU)")
    parser.add_argument("--train", action="store_true", help="then run both commands: prepare the corpus and train")
    parser.add_argument("--force", action="store_true", help="write over recipes that are there")


def run(args: argparse.Namespace) -> int:
    """Look, choose, write both recipes and print the next commands."""
    import_packages()
    from launch.start.model_choice import Dials
    from launch.start.recipes import Wishes, write_recipes

    dials = Dials(args.params, args.depth, args.tokens, args.time)
    if args.nproc is not None and args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc} is invalid: must be at least 1")
    remote = [name for name in args.inputs if "://" in name]
    if remote and len(remote) < len(args.inputs):
        raise ConfigError("give local files or URLs, not both. Write the other paths into input.paths of the recipe")
    name = name_of(args.inputs[0])
    out: Path = args.out or Path("runs") / name
    console = table_console()

    def say(line: str) -> None:
        console.print(escaped(line), highlight=False, markup=False, soft_wrap=True)

    wishes = Wishes(tuple(args.inputs), out, name, args.preset, dials, args.nproc, force=args.force)
    commands = write_recipes(wishes, say)
    if args.train:
        return _run(commands)
    say("Next:")
    for command in commands:
        say(f"    {shlex.join(command)}")
    return 0


def _run(commands: Sequence[Sequence[str]]) -> int:
    """Run commands of `triaxial` until one fails; returns its status."""
    from launch.demos.commands import run_command

    for _, *words in commands:
        if status := run_command(words):
            return status
    return 0


def name_of(path: str) -> str:
    """Return a name for files and metrics from the last part of a path that has one."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") for part in re.split(r"[/\\]", path.split("?")[0])]
    named = [part for part in parts if part]
    last = named[-1] if named else "mine"
    return re.sub(r"-(txt|md|jsonl|json|parquet|html?|warc|wet)?(-(gz|bz2|xz|zst))?$", "", last)[:60] or "mine"


def _count(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:[._]\d+)*(?:e\d+)?)([kmbgt]?)", text.strip().lower())
    value = float(found[1].replace("_", "")) * _FACTORS[found[2]] if found else 0.0
    if not 1000 <= value <= 1e13:
        raise argparse.ArgumentTypeError(f"{text!r} is invalid: must be a number from 1k on, such as 30M or 1.3B")
    return value


def _tokens(text: str) -> int:
    return 0 if text.lower() == "chinchilla" else int(_count(text))


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", text.strip().lower())
    if not found or not 10 <= float(found[1]) * _SECONDS[found[2]] <= 1e8:
        raise argparse.ArgumentTypeError(f"{text!r} is invalid: must be a time of at least 10s, such as 30m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]
