"""Turn raw corpora into token files; one file per stage."""

import gpt  # noqa: F401  # imports of modules that were moved then name their new place
