"""For tests: the moderation server as a process of its own, with a model that is a rule.

    python rule_server.py PORT [JSON of the server's limits and options]

The rule: the score of category X is the share of the letter x among the characters. A text with "fault" raises, and
each batch takes `pause_s`.
"""

import json
import sys
import time

import numpy as np

from launch.moderation_server.forms import category_names
from launch.moderation_server.limits import ServerLimits
from launch.moderation_server.process import run_server

CATEGORIES = ("A", "B")


def rule(text):
    return [text.count(letter) / len(text) for letter in "ab"]


class RuleScorer:
    categories = CATEGORIES
    version = "rule-1"

    def __init__(self, pause_s=0.0):
        self.thresholds = {"A": 0.5, "B": 0.25}
        self.pause_s = pause_s

    def scores(self, texts):
        time.sleep(self.pause_s)
        if any("fault" in text for text in texts):
            raise ValueError(f"cannot score {texts}")
        return np.array([rule(text) for text in texts])


if __name__ == "__main__":
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    pause_s, key = options.pop("pause_s", 0.0), options.pop("key", None)
    run_server(
        RuleScorer(pause_s),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        limits=ServerLimits(**options),
        names=category_names(CATEGORIES, ["TOXICITY=A"]),
        key=key,
        logs_requests=True,
    )
