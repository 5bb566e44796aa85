"""The `triaxial` command, recipes, processes and the wiring."""

import gpt  # noqa: F401  # imports of modules that were moved then name their new place
