"""The `triaxial` command, recipes, processes and the wiring."""

import gpt  # noqa: F401  # an import of a moved module then names its new location
