"""The scorer of a probe: a classifier run, or a Python function of another classifier."""

import importlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError
from gpt.moderation.probes.scoring import Score, checked_scores
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy


@dataclass(frozen=True)
class NamedScorer:
    """A function of texts that gives probabilities (n, c), and its version. A threshold is 0.5 unless it is given."""

    score: Score
    version: str
    taxonomy: Taxonomy
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def threshold_list(self) -> list[float]:
        return [self.thresholds.get(name, 0.5) for name in self.taxonomy.ids]


def scorer_of(name: str, taxonomy: Path | None, *, device: str = "auto") -> NamedScorer:
    """Open a classifier run, or the scorer `module:function`, which needs the taxonomy of its outputs.

    ConfigError: neither of the two, or the function's scores of two texts are no probabilities of these categories.
    """
    if Path(name).exists():
        if taxonomy is not None:
            raise ConfigError(f"--taxonomy is only valid with module:function: {name} has its own.")
        from launch.moderation.open_run import load_classifier  # with torch, which a function may not need

        opened = load_classifier(name, device=device)
        return NamedScorer(opened.scores, opened.version, opened.taxonomy, opened.thresholds)
    if taxonomy is None:
        raise ConfigError(f"SCORER {name} is no run; a function needs --taxonomy FILE: the categories of its scores.")
    found = read_taxonomy(taxonomy)
    score = _function(name)
    try:
        tried = checked_scores(score, ["one", "two"])
    except ValueError as error:
        raise ConfigError(f"SCORER {name} is invalid: {error}. It must return an array of n x c numbers.") from None
    if tried.shape[1] != len(found.ids) or not np.all((tried >= 0) & (tried <= 1)):
        raise ConfigError(
            f"SCORER {name} is invalid: it must give {len(found.ids)} probabilities a text, those of {found.label}."
        )
    return NamedScorer(score, name, found)


def _function(name: str) -> Score:
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"SCORER {name} is invalid: it is no run directory and not module:function.")
    sys.path.insert(0, "")  # modules in the working directory, as `python -m` finds them
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is loaded
        raise ConfigError(f"SCORER {name} cannot be imported: {type(error).__name__}: {error}.") from error
    finally:
        with suppress(ValueError):
            sys.path.remove("")
    if not callable(found):
        raise ConfigError(f"SCORER {name} is invalid: it is no function.")
    typed: Score = found
    return typed
