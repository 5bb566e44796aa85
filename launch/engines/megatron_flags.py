"""Read the flags of a Megatron-LM command."""

from collections.abc import Sequence
from typing import Any

from gpt.errors import ConfigError


class Flags:
    """The flags given. Each one that is read counts as used; the rest is sorted at the end."""

    def __init__(self, words: Sequence[str]) -> None:
        self.values: dict[str, list[str]] = {}
        self.used: set[str] = set()
        name = ""
        for word in words:
            if word.startswith("--"):
                name, _, value = word.partition("=")
                given = [value] if "=" in word else []
                if name in self.values:
                    raise ConfigError(f"{name} is given twice. Give it once")
                self.values[name] = given
            elif not name:
                raise ConfigError(f"'{word}' is invalid: it follows no flag. Start with a flag such as --num-layers 12")
            else:
                self.values[name].append(word)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def switch(self, name: str) -> bool:
        """Whether a flag without a value is given."""
        self.used.add(name)
        if self.values.get(name):
            raise ConfigError(f"{name} {' '.join(self.values[name])} is invalid: it takes no value. Use {name} alone")
        return name in self.values

    def text(self, name: str, default: str | None = None) -> str | None:
        """The one value of a flag."""
        self.used.add(name)
        if name not in self.values:
            return default
        if len(self.values[name]) != 1:
            raise ConfigError(f"{name} is invalid with {len(self.values[name])} values: it takes one")
        return self.values[name][0]

    def words(self, name: str) -> list[str]:
        self.used.add(name)
        return self.values.get(name, [])

    def number(self, name: str, default: float | None = None) -> Any:
        """The one number of a flag, an int if it is written as one."""
        text = self.text(name)
        return default if text is None else as_number(name, text)

    def exclude(self, *names: str) -> None:
        """ConfigError if more than one of these flags is given."""
        found = [name for name in names if name in self.values]
        if len(found) > 1:
            raise ConfigError(f"{found[0]} and {found[1]} contradict each other. Give one of them")


def as_number(name: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} {text} is invalid: must be a number") from None
