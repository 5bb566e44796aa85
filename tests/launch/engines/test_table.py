"""The guide's tables are those of the engines' capabilities."""

from pathlib import Path
from typing import get_args

import pytest

from launch.engines.table import EVERYTHING, engine_tables
from launch.main import main
from parallel.engines.capabilities import capabilities_of
from parallel.layout.config import EngineName

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "training" / "engines.md"


def test_the_guide_has_the_tables_of_the_capabilities() -> None:
    text = GUIDE.read_text()
    between = text.split("<!-- triaxial config --engines -->\n")[1].split("<!-- end -->")[0].strip()
    assert between == engine_tables(), "put the output of `triaxial config --engines` between the marks"


def test_every_rule_of_every_engine_is_in_the_tables() -> None:
    lines = engine_tables().splitlines()
    engines = [capabilities_of(name) for name in get_args(EngineName)]
    for column, engine in enumerate(engines):
        restricted = {rule.key for rule in engine.rules}
        for line in lines[4 : lines.index("")]:
            key, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert (cells[column] == EVERYTHING) == (key.strip("`") not in restricted), (engine.engine, key)
        for rule in engine.rules:
            assert f"| `{engine.engine}` | `{rule.key}` | {rule.reason} |" in lines


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--engines"]) == 0
    assert capsys.readouterr().out == engine_tables() + "\n"
    assert main(["config", "--engines", "--keys"]) == 2
    assert "one of a recipe, --keys and --engines" in capsys.readouterr().err
