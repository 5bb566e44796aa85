"""Wraps the model over many devices, from outside."""

import gpt  # noqa: F401  # an import of a moved module then names its new location
