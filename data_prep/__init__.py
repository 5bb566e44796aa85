"""Raw corpora to token files, one stage a file."""

import gpt  # noqa: F401  # imports of modules that were moved then name their new place
