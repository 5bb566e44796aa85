"""The `triaxial` command: run the chosen subcommand, and print a user's mistake as one line."""

import argparse
import errno
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from gpt.errors import MACHINE_FAULTS, NO_ROOM, ConfigError, did_you_mean, file_error
from gpt.files.atomic import free_space
from gpt.telemetry.output import OutputError
from launch.processes.error_reports import report_mistake
from launch.processes.failures import MISTAKE
from launch.processes.rank_process import (
    enter_process,
    fast_imports,
    ignore_stop_signals,
    leave_interrupted,
    stop_signals,
)
from parallel.errors import ForgedMessage

# Command of one or two words: (module, one line of help). A module has add_arguments(parser) and run(args) -> status,
# and imports torch in `run` only, after the arguments are checked: it takes seconds.
COMMANDS = {
    "init": ("launch.commands.init", "look at your texts and write the recipes for a corpus and a model"),
    "prepare": ("launch.commands.data.prepare", "turn web archives or text files into token files"),
    "prepare overlap": (
        "launch.commands.data.overlap",
        "mark examples of evaluation sets that occur in a corpus",
    ),
    "prepare verify": ("launch.commands.data.verify", "compare every byte of a corpus with its corpus.json"),
    "prepare checksum": ("launch.commands.data.checksum", "write checksums for token files, or compare them"),
    "prepare train-quality": (
        "launch.commands.data.train_quality",
        "train GPT-3's quality classifier for `prepare`",
    ),
    "data mixture": ("launch.commands.data.mixture", "show the tokens and epochs of each corpus in a mixture"),
    "data audit": (
        "launch.commands.arguments.data_audit",
        "name the corpus, file and documents that a step of a run reads",
    ),
    "explain": (
        "launch.commands.data.explain",
        "follow a file, URL or document from its preparation to the steps of a run that read it",
    ),
    "train": (
        "launch.commands.train",
        "train a GPT from a recipe, on any layout of tensor x pipeline x data parallelism",
    ),
    "plan": (
        "launch.commands.planning.plan",
        "choose a layout, and know its time, cost and memory, before paying for the GPUs",
    ),
    "config": ("launch.commands.config", "show the settings of a recipe and their origin, or every key"),
    "recipe from-megatron": (
        "launch.commands.recipe_from_megatron",
        "print a recipe for the flags of a Megatron-LM training command",
    ),
    "recipe from-deepspeed": (
        "launch.commands.recipe_from_deepspeed",
        "print a recipe for a DeepSpeed configuration",
    ),
    "report": (
        "launch.commands.report",
        "show the results of a run and where its time went, as tables or an HTML page",
    ),
    "evaluate": (
        "launch.commands.arguments.evaluate",
        "measure loss, perplexity and few-shot accuracy of a checkpoint",
    ),
    "score": (
        "launch.commands.arguments.score",
        "measure a reward model on rankings, and calibrate it on demonstrations",
    ),
    "generate": ("launch.commands.arguments.generate", "continue a prompt"),
    "answer": ("launch.commands.arguments.answer", "answer the questions of MT-bench, turn by turn, for a judge"),
    "best-of-n": ("launch.commands.arguments.best_of_n", "keep the best of n answers by a reward, and measure every n"),
    "compare": (
        "launch.commands.arguments.compare",
        "let people compare the answers of several runs, blind; count their votes",
    ),
    "choose": ("launch.commands.arguments.choose", "choose a run's checkpoint by the reward of its answers"),
    "tax": ("launch.commands.arguments.tax", "compare few-shot tasks before and after alignment, item by item"),
    "toxicity": (
        "launch.commands.arguments.toxicity",
        "continue prompts, score the texts, and report how toxic they get",
    ),
    "moderate audit": (
        "launch.commands.moderate.audit",
        "measure the quality of labels, and choose what an auditor must look at",
    ),
    "moderate heads": (
        "launch.commands.moderate.heads",
        "fit the linear heads of a classifier again to labelled texts, in seconds",
    ),
    "moderate calibrate": (
        "launch.commands.moderate.calibrate",
        "fit a classifier's calibration and thresholds on labelled texts",
    ),
    "moderate generate": (
        "launch.commands.moderate.generate",
        "write synthetic labelled texts by a language model or templates, and check their labels",
    ),
    "moderate probe": (
        "launch.commands.moderate.probe",
        "show where a classifier fails: functional suites, counterfactuals, perturbations, slices",
    ),
    "moderate select": (
        "launch.commands.moderate.select",
        "choose the texts to label next from scored texts, by three pipelines",
    ),
    "moderate taxonomy": (
        "launch.commands.moderate.taxonomy",
        "check the categories of a moderation system, show them to labellers, migrate labels",
    ),
    "moderate labels": (
        "launch.commands.moderate.labels",
        "read labelled texts of any form, merge labellers and count labels",
    ),
    "moderate label": (
        "launch.commands.moderate.label",
        "let people label texts on a local page, by keyboard; show how far they agree",
    ),
    "moderate score": ("launch.commands.moderate.score", "score the texts of a corpus with a classifier"),
    "moderate export": (
        "launch.commands.moderate.export",
        "export a classifier as a folder for transformers, with a model card",
    ),
    "moderate serve": ("launch.commands.moderate.serve", "serve a classifier over HTTP"),
    "moderate report": (
        "launch.commands.moderate.report",
        "show one or two versions of a classifier on labelled texts, as one HTML page",
    ),
    "convert": ("launch.commands.arguments.convert", "convert a model to or from another library's format"),
    "parity": ("launch.commands.arguments.parity", "show that a recipe trains the same model on every layout"),
    "doctor": ("launch.commands.doctor", "show what this machine offers and what would break a run"),
    "docs": ("launch.commands.docs", "say where the documentation and the batch scripts are, or print a page"),
    "demo": ("launch.commands.demo", "run everything on this machine: pages, tokens, training, evaluation, export"),
}
OVERRIDES = """Every key of the recipe can be set here too: --SECTION.KEY VALUE, such as --parallel.tensor 2.
`triaxial config --keys` explains all keys, and `triaxial config RECIPE` shows those of a recipe."""
BROKEN_PIPE = (
    141  # the status that a shell reports for a program that SIGPIPE ended, for example in `triaxial report RUN | head`
)
# Errors caused by a path or the machine. They are shown in one line; any other OSError is a bug, shown with traceback.
_MACHINE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, *MACHINE_FAULTS),
)


class _Parser(argparse.ArgumentParser):
    """Raise ConfigError for a wrong argument, so that it is printed in one line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See `{self.prog} --help`")


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"triaxial {importlib.metadata.version('triaxial')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status (2 for a user's mistake, 130 for Ctrl-C)."""
    try:
        enter_process(is_command=argv is None)
        try:
            if argv is None:
                return _run(sys.argv[1:], imports=fast_imports)
            return _run(list(argv), imports=nullcontext)
        finally:
            sys.stdout.flush()
    except OutputError as error:
        if error.is_closed:
            return BROKEN_PIPE
        report_mistake(str(error), exit_status=error.exit_status)
        return error.exit_status
    except ConfigError as error:
        report_mistake(str(error), exit_status=error.exit_status)
        return error.exit_status
    except ForgedMessage as error:
        report_mistake(str(error))
        return MISTAKE
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS or error.filename is None:
            raise
        path = error.filename2 or error.filename
        space = f"; {free_space(Path(path))}" if error.errno in NO_ROOM else ""
        found = file_error(error, f"{path}: {(error.strerror or '').lower()}{space}")
        report_mistake(str(found), exit_status=found.exit_status)
        return found.exit_status
    except KeyboardInterrupt:
        return leave_interrupted()
    finally:
        if argv is None:
            ignore_stop_signals()
            gc.freeze()  # else Python's shutdown visits every object of torch for half a second


def _run(given: list[str], *, imports: Callable[[], AbstractContextManager[None]]) -> int:
    """Run the command of these words. Modules that load torch are imported inside `imports()`."""
    words, overrides = split_overrides(join_command(given))
    chosen = next((word for word in words if word in COMMANDS), None)
    with stop_signals() if chosen == "train" else nullcontext() as stop:
        with imports():
            args = parse(words, overrides, chosen=chosen)
        args.given, args.overrides, args.stop_signals, args.imports = given, overrides, stop, imports
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))


def parse(words: Sequence[str], overrides: Sequence[str], *, chosen: str | None) -> argparse.Namespace:
    """Parse the arguments of the command `chosen`. Only its module is imported, to start quickly."""
    parser = _Parser(
        prog="triaxial",
        description="Train GPT-3-class language models with tensor, pipeline and data parallelism.",
        epilog="`triaxial docs` says where the guides and the Slurm scripts are, and prints them.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    check_command(words)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
            if command.get_default("takes_overrides"):
                command.epilog = command.epilog or OVERRIDES
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    if overrides and not getattr(args, "takes_overrides", False):
        raise ConfigError(f"triaxial {chosen} reads no recipe and takes no override: {' '.join(overrides)}")
    return args


def check_command(words: Sequence[str]) -> None:
    """ConfigError if the first word is no command. It names the commands that begin with it, or the most similar.

    SystemExit(0) after a list of them if the second word asks for help, as in `triaxial moderate --help`.
    """
    name = words[0] if words else ""
    if name in COMMANDS or name.startswith("-"):
        return
    second = [command.partition(" ")[2] for command in COMMANDS if command.startswith(f"{name} ")]
    if second and words[1:2] in (["-h"], ["--help"]):
        width = max(map(len, second))
        print(f"usage: triaxial {name} COMMAND ...\n")
        for word in second:
            print(f"  {word:<{width}}  {COMMANDS[f'{name} {word}'][1]}")
        print(f"\n`triaxial {name} COMMAND --help` explains each of them.")
        raise SystemExit(0)
    if second:
        raise ConfigError(f"triaxial {name} needs one more word: {' or '.join(second)}. See `triaxial --help`")
    first = dict.fromkeys(command.partition(" ")[0] for command in COMMANDS)
    meant = did_you_mean(name, COMMANDS) or f"use one of {', '.join(first)}."
    raise ConfigError(
        f"{f'unknown command {name!r}' if words else 'a command is missing'}; {meant} See `triaxial --help`"
    )


def join_command(words: Sequence[str]) -> list[str]:
    """The words, with a two-word command such as `prepare verify` joined into one."""
    pair = " ".join(words[:2])
    return [pair, *words[2:]] if pair in COMMANDS else list(words)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into the command's own words and `--section.key VALUE` or `--section.key=VALUE` overrides."""
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
