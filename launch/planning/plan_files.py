"""Files that a plan writes: the recipe with its layout, and the Slurm script that runs it."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.regular import read_text
from launch.config.settings import toml
from launch.shipped import shipped_folder
from parallel.layout.config import ParallelConfig
from parallel.planner.choice.candidates import Candidate

MAX_FILE_BYTES = 1 << 20  # of a file that may be written over
RECIPE_MARK = ", by triaxial plan: "
SCRIPT_MARK = "# the planned recipe"
HOURS = 24  # of one job; the script requeues itself


def check_not_lost(option: str, path: Path | None, mark: str) -> None:
    """ConfigError if `path` is a file without `mark`, so not by `triaxial plan`: it may be somebody's only copy."""
    if path is None or not path.is_file():
        return
    try:
        text = read_text(path, max_bytes=MAX_FILE_BYTES)
    except (OSError, ValueError):
        text = ""
    if mark not in text:
        raise ConfigError(
            f"{option} {path} is invalid: the file is there, and {option} did not write it. Use another name"
        )


def recipe_text(table: dict[str, Any], chosen: Candidate, *, note: str) -> str:
    """A recipe's table as TOML with the chosen layout. `note` becomes its first comment."""
    usual = ParallelConfig()
    settings = {field.name: getattr(chosen.parallel, field.name) for field in fields(ParallelConfig)}
    kept = {key: value for key, value in settings.items() if value is not None and value != getattr(usual, key)}
    batch = {**table.get("batch", {}), "micro_batch_size": chosen.micro_batch_size}
    lines = [f"# {line}" for line in note.splitlines()]
    for section, values in {**table, "parallel": kept, "batch": batch}.items():
        lines += ["", f"[{section}]", *(f"{key} = {toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def sbatch_text(recipe: Path, *, script: Path, nodes: int, gpus_per_node: int) -> str:
    """The project's Slurm script for this many nodes, with a recipe instead of an argument.

    `script`: the file that it is written to, which the comments name.
    """
    template = shipped_folder("slurm") / "train.sbatch"
    text = template.read_text(encoding="utf-8")
    for option, value in (("nodes", nodes), ("gpus-per-node", gpus_per_node), ("time", f"{HOURS}:00:00")):
        text, count = re.subn(rf"(?m)^#SBATCH --{option}=.*$", f"#SBATCH --{option}={value}", text)
        if count != 1:
            raise ConfigError(f"{template} is invalid: it needs one line #SBATCH --{option}. Install Triaxial again")
    name = shlex.quote(str(script))
    text = text.replace("slurm/train.sbatch gpt3_1.3b", name).replace("slurm/train.sbatch", name)
    given = f'set -- {shlex.quote(str(recipe.absolute()))} "$@" {SCRIPT_MARK}\n'
    return text.replace("set -u\n", f"set -u\n{given}", 1)
