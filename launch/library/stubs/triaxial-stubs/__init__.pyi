from gpt.errors import ConfigError as ConfigError
from launch.library.language_model import LanguageModel as LanguageModel
from launch.library.language_model import load as load
from launch.library.reward_model import TrainedReward as TrainedReward
from launch.library.reward_model import load_reward as load_reward
from launch.library.runs import TrainedRun as TrainedRun
from launch.library.runs import prepare as prepare
from launch.library.runs import train as train

__version__: str
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
