"""The versions that a run was started with, kept in its directory: ours with its commit, torch, Python."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

from gpt.files.atomic import replace_file

SOFTWARE = "software.json"
_GIT_S = 10.0  # a checkout on a slow shared disk


def keep_software(directory: Path) -> None:
    """Write the versions of this process to a run directory. For one rank."""
    replace_file(directory / SOFTWARE, json.dumps(software(), indent=2) + "\n")


def software() -> dict[str, str]:
    """Names and versions. `commit` is there if the code runs from a Git checkout."""
    try:
        ours = importlib.metadata.version("triaxial")
    except importlib.metadata.PackageNotFoundError:
        ours = "not installed"
    commit = commit_of(Path(__file__).parents[2])
    return {
        "triaxial": ours,
        **({"commit": commit} if commit else {}),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
    }


def commit_of(checkout: Path) -> str | None:
    """The commit of a Git checkout, with "-dirty" if tracked files differ from it. None: it is none, or Git fails."""
    if not (checkout / ".git").exists():
        return None
    words = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=_GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
