"""The `triaxial` command: finds the subcommand, prints a user's mistake as one line, never does the work itself."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt.errors import NO_ROOM, ConfigError, DiskFull
from launch.processes.error_reports import report_mistake
from launch.processes.rank_process import enter_process

# command, of one word or two: (module, one line of help). A module has add_arguments(parser) and run(args) -> status.
COMMANDS = {
    "prepare": ("launch.commands.data.prepare", "turn web archives or text files into token files"),
    "prepare overlap": (
        "launch.commands.data.overlap",
        "mark the examples of evaluation sets that occur in a corpus",
    ),
    "prepare verify": ("launch.commands.data.verify", "compare a corpus with its corpus.json, every byte of it"),
    "prepare checksum": ("launch.commands.data.checksum", "write checksums beside token files, or compare them"),
    "prepare train-quality": (
        "launch.commands.data.train_quality",
        "train GPT-3's quality classifier for `prepare`",
    ),
    "data mixture": ("launch.commands.data.mixture", "tokens and epochs that each corpus of a mixture comes to"),
    "data audit": (
        "launch.commands.data.audit",
        "name the corpus, file and documents that a step of a run was read from",
    ),
    "train": (
        "launch.commands.train",
        "train a GPT from a recipe, on any layout of tensor x pipeline x data parallelism",
    ),
    "report": ("launch.commands.report", "what a training run did and where its time went, as tables or one HTML page"),
    "evaluate": ("launch.commands.evaluate", "validation loss, perplexity and few-shot accuracy of a checkpoint"),
    "generate": ("launch.commands.generate", "continue a prompt"),
    "convert": ("launch.commands.convert", "export a checkpoint to another library's format"),
    "parity": ("launch.commands.parity", "show that a recipe trains the same model on every layout"),
    "doctor": ("launch.commands.doctor", "show what this machine offers and what would break a run"),
    "demo": ("launch.commands.demo", "the whole path on this machine: pages, tokens, training, evaluation, export"),
}
# What a path or a machine may be wrong in wherever a command first touches it; any other error is ours to explain.
_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT),
)


class _Parser(argparse.ArgumentParser):
    """Tells of a mistake in one line, as all others are told."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` says what there is")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit status (2 for a user's mistake, 130 for Ctrl-C)."""
    enter_process(is_command=argv is None)
    given = list(sys.argv[1:] if argv is None else argv)
    words, overrides = split_overrides(join_command(given))
    parser = _Parser(prog="triaxial", description="Train GPT-3-class language models in three dimensions.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:  # only the chosen command's imports are paid for
            importlib.import_module(module).add_arguments(command)
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown:
            commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        args.given, args.overrides = given, overrides
        if overrides and not getattr(args, "takes_overrides", False):
            raise ConfigError(f"triaxial {chosen} reads no recipe, so it takes no override: {' '.join(overrides)}")
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except ConfigError as error:
        report_mistake(str(error), exit_status=error.exit_status)
        return error.exit_status
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE or error.filename is None:
            raise
        status = DiskFull.exit_status if error.errno in NO_ROOM else ConfigError.exit_status
        report_mistake(f"{error.filename2 or error.filename}: {(error.strerror or '').lower()}", exit_status=status)
        return status
    except KeyboardInterrupt:
        return 130


def join_command(words: Sequence[str]) -> list[str]:
    """The words with a command of two of them, such as `prepare verify`, as one."""
    pair = " ".join(words[:2])
    return [pair, *words[2:]] if pair in COMMANDS else list(words)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and its `--section.key VALUE` or `--section.key=VALUE` overrides of a recipe."""
    own: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and "." in word.partition("=")[0]:
            overrides += [word, rest.pop(0)] if "=" not in word and rest else [word]
        else:
            own.append(word)
    return own, overrides


if __name__ == "__main__":
    sys.exit(main())
