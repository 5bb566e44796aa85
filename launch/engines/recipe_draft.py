"""Write a recipe from another program's settings, each value with its origin, and name those without a counterpart."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from gpt.errors import one_line
from launch.config.recipe import apply_overrides
from launch.config.run_config import RunConfig, build_run_config
from launch.config.settings import toml
from parallel.layout.config import EngineName

FILL_IN = "FILL IN"
GIVEN = "given"  # on the command line
TOKENIZER, CORPUS = f"{FILL_IN}/tokenizer.model", f"{FILL_IN}/train"  # paths until the user has named them


@dataclasses.dataclass
class RecipeDraft:
    """A recipe that is being written. `title`: the first line of its comment.

    `lacking`, `unneeded` and `unknown` are the other program's settings that have no counterpart here (with the
    reason), need none, and are not known at all.
    """

    title: str
    table: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)  # by dotted key
    gaps: dict[str, Any] = dataclasses.field(default_factory=dict)  # dotted key -> a value with which to check the rest
    lacking: list[str] = dataclasses.field(default_factory=list)
    unneeded: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    hints: list[str] = dataclasses.field(default_factory=list)

    def set(self, key: str, value: Any, origin: str = "") -> None:
        """Set a dotted key, unless the command line gave it. None leaves it out."""
        if value is not None and self.origins.get(key) != GIVEN:
            section, _, name = key.partition(".")
            self.table.setdefault(section, {})[name] = value
            self.origins[key] = origin

    def get(self, key: str) -> Any:
        """The value of a dotted key; None if it is not set or still to be filled in."""
        section, _, name = key.partition(".")
        return None if key in self.gaps else self.table.get(section, {}).get(name)

    def leave(self, key: str, placeholder: Any, hint: str, *, example: Any) -> None:
        """Leave a key for the user, unless the command line gave it. `example`: a valid value."""
        if self.origins.get(key) != GIVEN:
            self.set(key, placeholder, f"{FILL_IN}: {hint}")
            self.gaps[key] = example

    def lacks(self, setting: str, reason: str) -> None:
        self.lacking.append(f"{setting}: {reason}")

    def hint_engine(self, engine: str, name: str) -> None:
        """Say that the other program's own engine can train the recipe, if it can be chosen."""
        if engine in get_args(EngineName):
            self.hints.append(f'parallel.engine = "{engine}" trains it with {name} itself.')

    def override(self, words: Sequence[str]) -> None:
        """Take the command line's `--section.key VALUE`, which nothing replaces. Call it first."""
        for section, values in apply_overrides({}, list(words)).items():
            for name, value in values.items() if isinstance(values, dict) else ():
                self.set(f"{section}.{name}", value, GIVEN)

    def text(self) -> str:
        """The recipe in TOML. ConfigError if its values contradict each other."""
        checked = {section: dict(values) for section, values in self.table.items()}
        for key, example in self.gaps.items():
            section, _, name = key.partition(".")
            checked[section][name] = example
        build_run_config(checked)
        lines = [f"# {self.title}", *self._remarks()]
        for field in dataclasses.fields(RunConfig):
            if values := self.table.get(field.name):
                lines += ["", f"[{field.name}]"]
                lines += [self._line(f"{field.name}.{key}", key, value) for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def _remarks(self) -> list[str]:
        lines = [f"# {hint}" for hint in self.hints]
        if self.gaps:
            lines.append(f"# To fill in: {', '.join(self.gaps)}.")
        for heading, settings in (
            ("No counterpart in Triaxial:", self.lacking),
            ("Unknown, and left out:", self.unknown),
            ("Not needed, since Triaxial decides or always does it:", self.unneeded),
        ):
            if settings:
                lines += ["#", f"# {heading}", *(f"#   {one_line(setting)}" for setting in settings)]
        return lines

    def _line(self, dotted: str, key: str, value: Any) -> str:
        origin = self.origins.get(dotted, "")
        return f"{key} = {toml(value)}" + (f"  # {one_line(origin)}" if origin else "")
