"""Turn raw corpora into token files; one file per stage."""

import gpt  # noqa: F401  # an import of a moved module then names its new location
