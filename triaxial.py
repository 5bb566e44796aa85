"""Triaxial from Python: prepare a corpus, train a model, and use it.

    import triaxial

    triaxial.prepare("corpus.toml")
    run = triaxial.train("model.toml", {"train.total_tokens": 10_000_000})
    model = triaxial.load(run.directory)
    print(model.generate("Once upon a time", max_new_tokens=60))

See docs/guides/library.md. `python -m triaxial` is the `triaxial` command. This module holds names and no logic.
"""

import importlib.metadata
import sys

if __name__ == "__main__":  # before the imports below: most commands start without torch
    from launch.main import main

    sys.exit(main())

from gpt.errors import ConfigError
from launch.library.language_model import LanguageModel, load
from launch.library.reward_model import TrainedReward, load_reward
from launch.library.runs import TrainedRun, prepare, train

__version__ = importlib.metadata.version("triaxial")
__all__ = [
    "ConfigError",
    "LanguageModel",
    "TrainedReward",
    "TrainedRun",
    "__version__",
    "load",
    "load_reward",
    "prepare",
    "train",
]
