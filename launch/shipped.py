"""Find the folders that come with Triaxial but are no Python: its documentation and its batch scripts."""

import sys
from pathlib import Path
from typing import Literal

from gpt.errors import ConfigError

Shipped = Literal["docs", "slurm"]


def shipped_folder(name: Shipped) -> Path:
    """The folder in the checkout, else where a wheel installs it: share/triaxial. ConfigError: it is missing."""
    packages = Path(__file__).resolve().parents[1]  # the checkout, or site-packages, or pip's --target
    if (packages / "pyproject.toml").is_file() and (packages / name).is_dir():
        return packages / name
    for prefix in (Path(sys.prefix), packages, *packages.parents):
        if (prefix / "share" / "triaxial" / name / "README.md").is_file():
            return prefix / "share" / "triaxial" / name
    raise ConfigError(f"the folder {name} is missing from this installation. Install Triaxial again")
