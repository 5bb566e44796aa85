"""Wraps the model over many devices, from outside."""

import gpt  # noqa: F401  # imports of modules that were moved then name their new place
