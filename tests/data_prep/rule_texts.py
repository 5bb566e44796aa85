"""Texts for the tests of quality rules."""

import re

WORDS = re.findall(
    r"\w+",
    """time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house""",
)


def sentence(start: int, n: int = 9) -> str:
    """Words in an order that repeats no pair within a few hundred words."""
    step = 1 + start % 7
    return " ".join(WORDS[(start * 5 + i * step) % len(WORDS)] for i in range(n))
