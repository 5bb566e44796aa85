"""Recipes: the TOML that `triaxial train` reads."""

from pathlib import Path

from fuzzing import Target

from launch.config.run_config import as_dict, layout_of, read_run_config

DEMO = Path(__file__).parents[2] / "launch" / "recipes" / "demo.toml"


def write(folder: Path) -> None:
    (folder / "recipe.toml").write_text(DEMO.read_text())


def read(folder: Path) -> object:
    config = read_run_config(str(folder / "recipe.toml"), [])
    layout_of(config, 4)
    return as_dict(config)


TARGETS = (Target("toml_recipe", write, read, cases=150),)
