"""`triaxial config`: show the settings of a recipe with their origin, or every key that a recipe may have."""

import argparse
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from launch.config import lengths
from launch.config.defaults import resolve
from launch.config.recipe import build, find_recipe, read_toml, unknown_name
from launch.config.run_config import RunConfig, config_of, recipe_table
from launch.config.settings import BY_RULE, REQUIRED, Setting, settings_of, toml
from launch.engines.table import engine_tables
from launch.processes.terminal import table_console

TITLES = {"train": "Training", "prepare": "Data preparation"}  # command -> title of its settings
OTHERS = {"mixture": "data mixture", "overlap": "prepare overlap"}  # section -> command whose recipes have it
PAGE = """# Settings

Every key of the recipes of `triaxial train` and `triaxial prepare`. `triaxial config --keys --markdown`
makes this page from the sources. `triaxial config RECIPE` shows each key of a recipe with its value
and origin. The command line takes each key too: `--section.key VALUE`. `train[].path` is the key
`path` of each table in the list `train`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a TOML recipe, or the name of a shipped one such as gpt3_125m")
    parser.add_argument("--keys", nargs="?", const="", metavar="SECTION", help="show all keys, or those of one section")
    parser.add_argument("--engines", action="store_true", help="show the values that each engine takes, in Markdown")
    parser.add_argument("--markdown", action="store_true", help="with --keys: as the page docs/settings.md")
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    if [args.recipe is not None, args.keys is not None, args.engines].count(True) != 1:
        raise ConfigError("triaxial config needs one of a recipe, --keys and --engines. See `triaxial config --help`")
    if args.markdown and args.keys is None:
        raise ConfigError("--markdown is invalid without --keys: it writes the page of all keys")
    if args.engines:
        print(engine_tables())
    elif args.recipe is not None:
        print("\n".join(resolved(args.recipe, args.overrides)))
    elif args.markdown:
        print(page())
    else:
        show_keys(args.keys)
    return 0


def recipe_classes() -> dict[str, type[Any]]:
    """Return command -> the dataclass of its recipe."""
    from data_prep.recipe import PrepareConfig

    return {"train": RunConfig, "prepare": PrepareConfig}


def sections(cls: type[Any]) -> dict[str, list[Setting]]:
    """Return section -> its settings."""
    found: dict[str, list[Setting]] = {}
    for setting in (*settings_of(cls), *(lengths.settings() if cls is RunConfig else ())):
        found.setdefault(setting.key.partition(".")[0], []).append(setting)
    return found


def resolved(recipe: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a recipe with every key and the origin of its value. ConfigError: the recipe is invalid."""
    given = read_toml(find_recipe(recipe))
    table = recipe_table(given, overrides)
    config, origins = build_resolved(_class_of(table, recipe), table)
    for name, section in vars(config).items():
        if section is None:
            yield f"# no section [{name}]\n"
            continue
        yield f"[{name}]"
        for key, value in vars(section).items():
            origin = "default"
            if key in table.get(name, {}):
                same = key in given.get(name, {}) and given[name][key] == table[name][key]
                origin = "recipe" if same else "command line"
            origin = origins.get(f"{name}.{key}", origin)
            yield f"{key} = {toml(value)}  # {origin}" if value is not None else f"# {key} has no value"
        yield ""


def build_resolved(cls: type[Any], table: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return the configuration, and the origins of values that are from a rule or from a length in another unit."""
    if cls is not RunConfig:
        return build(cls, table, where=""), {}
    values = resolve(table)
    return config_of(values), values.origins


def _class_of(table: dict[str, Any], recipe: str) -> type[Any]:
    """Return the dataclass that has the most sections of this table."""
    for section in OTHERS.keys() & table.keys():
        raise ConfigError(f"{recipe} is a recipe of `triaxial {OTHERS[section]}`, not of `train` or `prepare`")
    return max(recipe_classes().values(), key=lambda cls: len(table.keys() & typing.get_type_hints(cls).keys()))


def show_keys(section: str) -> None:
    """Print all keys, or those of one section. ConfigError: no such section."""
    found = {command: sections(cls) for command, cls in recipe_classes().items()}
    known = [name for by_section in found.values() for name in by_section]
    if section and section not in known:
        raise ConfigError(f"--keys {section} is invalid: {unknown_name('section', section, known)}")
    console = table_console()
    for command, by_section in found.items():
        for name, settings in by_section.items():
            if section in ("", name):
                title = Text(f"triaxial {command}: [{name}]")
                table = Table(title=title, title_justify="left", box=box.SIMPLE)
                for heading in ("key", "type", "default", "meaning"):
                    table.add_column(heading, overflow="fold")
                for setting in settings:
                    table.add_row(setting.key, setting.kind, setting.default, setting.meaning)
                console.print(table, markup=False)


def page() -> str:
    """Return docs/settings.md."""
    lines = [PAGE]
    for command, cls in recipe_classes().items():
        lines += [f"## {TITLES[command]}: `triaxial {command} RECIPE`", ""]
        for name, settings in sections(cls).items():
            lines += [f"### [{name}]", "", "| key | type | default | meaning |", "|---|---|---|---|"]
            for setting in settings:
                default = setting.default if setting.default in ("", REQUIRED, BY_RULE) else f"`{setting.default}`"
                cells = (f"`{setting.key}`", setting.kind, default, setting.meaning)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
    return "\n".join(lines).rstrip()
