"""The arguments that several commands share: the run, the device, the layout, and how a classifier is opened.

Commands show and check them without torch, which takes seconds to import.
"""

import argparse
from pathlib import Path

from gpt.errors import ConfigError
from launch.processes.environment import ClusterEnvironment
from parallel.checkpoint.manifest import MANIFEST

BEST = -1  # in place of a step: that of the best checkpoint
STEP_HELP = "the checkpoint of this step, or `best` by `triaxial choose` or checkpoint.keep_best (default: the newest)"
DTYPE_NAMES = ("float32", "bfloat16")
EXPORT_DTYPE_NAMES = (*DTYPE_NAMES, "float16")  # a model imported in float16 may be exported in it
BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384  # of a classifier: the activations of more do not fit into a CPU's caches
DEFAULT_NEW_TOKENS = 100  # of a generated text
DEFAULT_JUDGED_TOKENS = 1024  # of an answer for a judge, as in FastChat
DEFAULT_BATCH_TOKENS = 8192  # of generated texts: prompts and new tokens
LAYOUT_KEYS = ("tensor", "pipeline", "data", "split")  # of [parallel]; its other keys only affect training


def step_argument(text: str) -> int:
    """The value of `--step`: a number, or BEST for `best`."""
    return BEST if text == "best" else int(text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a run."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory such as runs/demo, or one checkpoint in it"
    )
    parser.add_argument("--step", type=step_argument, metavar="N", help=STEP_HELP)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the device and the precision of a model."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="float32", help="precision of the weights (default: float32)"
    )


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of processes; use it with `add_run_arguments` and `add_device_arguments`."""
    parser.set_defaults(takes_overrides=True)
    layout = ", ".join(f"--parallel.{key}" for key in LAYOUT_KEYS)
    parser.epilog = f"Of the recipe's keys, only the layout can be set: {layout}."
    parser.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="start N processes on this machine; --parallel.tensor and --parallel.pipeline distribute the model over "
        "them. Remaining processes are data ranks and work on other requests (default: one process)",
    )


def add_classifier_arguments(parser: argparse.ArgumentParser, *, layouts: bool = True) -> None:
    """Add the arguments that set how the run of `add_run_arguments` is opened."""
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="tokens of a window: longer texts are cut into windows that overlap by a quarter, and get the largest "
        "score of each category (default: data.seq_len of the run, at most the model's context)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help=f"tokens per batch (default: {BATCH_TOKENS} on a CPU, {GPU_BATCH_TOKENS} on a GPU)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="leave out the run's calibration; its thresholds become those of raw scores"
    )
    add_device_arguments(parser)
    if layouts:
        add_layout_arguments(parser)


def starts_ranks(args: argparse.Namespace) -> bool:
    """Return whether this process must start others with `start_ranks`, which then do the work."""
    environment = ClusterEnvironment.from_environment()
    if args.nproc is None:
        return False
    if args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc} is invalid: must be at least 1")
    if environment.master_addr is None:
        return bool(args.nproc > 1)
    if args.nproc != environment.world_size:
        raise ConfigError(
            f"--nproc {args.nproc} is invalid: the launcher started {environment.world_size} processes. Leave it out."
        )
    return False


def check_run_arguments(args: argparse.Namespace) -> None:
    """ConfigError for a wrong `--nproc` or a path that is no run, before torch is imported."""
    starts_ranks(args)
    find_checkpoint_folder(args.run)


def is_first_process() -> bool:
    """Return whether this is rank 0, or the only process."""
    return ClusterEnvironment.from_environment().rank == 0


def find_checkpoint_folder(path: Path) -> tuple[Path, Path | None]:
    """The folder of a run's checkpoints, and None; or that folder and `path`, if `path` is a checkpoint itself."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder. Give a run directory, such as runs/demo, or a checkpoint in one.")
    folder = path / "checkpoints"
    if folder.is_dir():
        return folder, None
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path} is neither a run directory with a folder checkpoints/ nor a checkpoint")
    return path.absolute().parent, path
