"""The calibration and the thresholds of a run, which `triaxial moderate calibrate` writes into RUN/moderation/."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.moderation.measures.calibration import Calibrator, calibrated, read_calibrator

FOLDER, CALIBRATION, THRESHOLDS = "moderation", "calibration.json", "thresholds.json"
DEFAULT_THRESHOLD = 0.5
_BISECTIONS = 60  # to the spacing of float64


@dataclass(frozen=True)
class Decisions:
    """How a run's probabilities become scores, and which scores flag a text. Without files they are as they are."""

    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""  # of the files, "" without any

    def applied(self, probabilities: NDArray[np.float64], categories: tuple[str, ...]) -> NDArray[np.float64]:
        """The scores (n, c) of probabilities (n, c)."""
        scores = probabilities.copy()
        for column, name in enumerate(categories):
            if name in self.calibrators:
                scores[:, column] = calibrated(scores[:, column], self.calibrators[name])
        return scores

    def without_calibration(self) -> "Decisions":
        """Thresholds of the raw probabilities that flag the same texts: the least of each that reaches the threshold.

        A threshold that no raw probability reaches becomes 1.
        """
        thresholds = {
            name: _least_raw(value, self.calibrators[name]) if name in self.calibrators else value
            for name, value in self.thresholds.items()
        }
        return Decisions({}, thresholds)


def _least_raw(threshold: float, calibrator: Calibrator) -> float:
    """The least probability whose calibrated one reaches the threshold, by bisection; 1 if none does."""
    low, high = 0.0, 1.0
    if calibrated(low, calibrator) >= threshold:
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if calibrated(middle, calibrator) >= threshold else (middle, high)
    return high


def read_decisions(run: Path, categories: tuple[str, ...]) -> Decisions:
    """Read both files of a run directory; a missing one changes nothing. ConfigError: a file is damaged, or names a
    category that the taxonomy lacks."""
    digest = hashlib.sha256()
    found: dict[str, dict[str, Any]] = {}
    for name in (CALIBRATION, THRESHOLDS):
        path = run / FOLDER / name
        found[name] = {}
        if path.is_file():
            digest.update(path.read_bytes())
            found[name] = _table(path, categories)
    calibrators = {
        name: read_calibrator(value, where=f"{run / FOLDER / CALIBRATION}: {name}")
        for name, value in found[CALIBRATION].items()
    }
    for name, value in found[THRESHOLDS].items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ConfigError(f"{run / FOLDER / THRESHOLDS}: {name} is invalid: must be a number from 0 to 1")
    is_any = bool(calibrators or found[THRESHOLDS])
    thresholds = {name: float(found[THRESHOLDS].get(name, DEFAULT_THRESHOLD)) for name in categories}
    return Decisions(calibrators, thresholds, digest.hexdigest() if is_any else "")


def _table(path: Path, categories: tuple[str, ...]) -> dict[str, Any]:
    table = read_json_object(path)
    for name in table:
        if name not in categories:
            raise ConfigError(
                f"{path}: {name!r} is no category of the run's taxonomy; use {', '.join(categories)}. Run `triaxial "
                "moderate calibrate` again"
            )
    return table
