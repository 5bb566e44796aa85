"""The calibration and the thresholds of a run, which `triaxial moderate calibrate` writes into RUN/moderation/."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.json_files import read_json_object
from gpt.moderation.measures.calibration import Calibrator, calibrated, parents_at_least_children, read_calibrator

FOLDER, CALIBRATION, THRESHOLDS = "moderation", "calibration.json", "thresholds.json"
FITTED_ON = "fitted_on.json"  # in the same folder: digests of the ids of the texts that chose them
DEFAULT_THRESHOLD = 0.5
_BISECTIONS = 60  # to the spacing of float64


@dataclass(frozen=True)
class Decisions:
    """How a run's probabilities become scores, and which scores flag a text. Without files they are as they are."""

    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""  # of the files, "" without any
    parents: tuple[int, ...] = ()  # positions, -1 without one; () if a child may have more than its parent

    def applied(self, probabilities: NDArray[np.float64], categories: tuple[str, ...]) -> NDArray[np.float64]:
        """The scores (n, c) of probabilities (n, c): calibrated, and with parents at least their children again."""
        return calibrated_scores(probabilities, categories, self.calibrators, self.parents)

    def without_calibration(self) -> "Decisions":
        """Thresholds of raw probabilities: the least of each whose calibrated one reaches the threshold.

        They flag the same texts, except parents that reach their threshold by the calibrated score of a child only. A
        threshold that no raw probability reaches becomes 1.
        """
        thresholds = {
            name: _least_raw(value, self.calibrators[name]) if name in self.calibrators else value
            for name, value in self.thresholds.items()
        }
        return Decisions({}, thresholds, parents=self.parents)


def calibrated_scores(
    probabilities: NDArray[np.float64],
    categories: Sequence[str],
    calibrators: Mapping[str, Calibrator],
    parents: Sequence[int],
) -> NDArray[np.float64]:
    """The scores (n, c) of probabilities (n, c). With `parents`, one has at least the scores of its children."""
    scores = probabilities.copy()
    for column, name in enumerate(categories):
        if name in calibrators:
            scores[:, column] = calibrated(scores[:, column], calibrators[name])
    return parents_at_least_children(scores, parents) if calibrators else scores


def _least_raw(threshold: float, calibrator: Calibrator) -> float:
    """The least probability whose calibrated one reaches the threshold, by bisection; 1 if none does."""
    low, high = 0.0, 1.0
    if calibrated(low, calibrator) >= threshold:
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if calibrated(middle, calibrator) >= threshold else (middle, high)
    return high


def read_decisions(run: Path, categories: tuple[str, ...], *, parents: tuple[int, ...] = ()) -> Decisions:
    """Read both files of a run directory; a missing one changes nothing.

    `parents`: of a classifier whose categories have at least the scores of their children. ConfigError: a file is
    damaged, or names a category that the taxonomy lacks.
    """
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
    if calibrators and any(parent >= 0 for parent in parents):
        digest.update(repr(parents).encode())
    thresholds = {name: float(found[THRESHOLDS].get(name, DEFAULT_THRESHOLD)) for name in categories}
    return Decisions(calibrators, thresholds, digest.hexdigest() if is_any else "", parents)


def write_fitted_on(run: Path, ids: Iterable[str]) -> None:
    """Keep which texts chose the calibration and thresholds of a run, as digests of their ids."""
    replace_file(run / FOLDER / FITTED_ON, json.dumps({"ids": sorted(map(_id_digest, ids))}) + "\n")


def n_fitted_on(run: Path, ids: Iterable[str]) -> int:
    """How many of these texts chose the calibration and thresholds of a run; 0 if the run does not know."""
    path = run / FOLDER / FITTED_ON
    known = read_json_object(path).get("ids") if path.is_file() else None
    found = set(known) if isinstance(known, list) else set()
    return sum(_id_digest(one) in found for one in ids)


def _id_digest(text_id: str) -> str:
    return hashlib.sha256(text_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _table(path: Path, categories: tuple[str, ...]) -> dict[str, Any]:
    table = read_json_object(path)
    for name in table:
        if name not in categories:
            raise ConfigError(
                f"{path}: {name!r} is no category of the run's taxonomy; use {', '.join(categories)}. Run `triaxial "
                "moderate calibrate` again"
            )
    return table
