"""The pages of docs/ and every README: links lead somewhere; files and options that they name exist."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from launch.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "runs", "data"} & set(path.relative_to(ROOT).parts))
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(
    r"(?<![\w./-])((?:gpt|parallel|data_prep|launch|tests|benchmarks|slurm|docs)/[\w/.-]+\.(?:py|md|toml|sbatch|svg))"
)

USE = re.compile(r"(?<![\w/.-])triaxial ([a-z](?:(?! #| {2}|[`;|)\n]|&&).)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?![\w.-])")  # and not --section.key

WRITTEN = re.compile(r"(?<=touch )[\w./-]+|(?<=`)[\w./-]+(?=`:\s*```(?!diff|console))")  # by a tutorial's reader


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    missing = {name for name in SOURCE.findall(text) if not (ROOT / name).exists()}
    assert missing - set(WRITTEN.findall(text)) == set()


def test_options_that_a_page_gives_to_a_command_exist():
    """A line `triaxial COMMAND ...` of a page, with those that it continues on."""
    known = {name: options_of(name) for name in COMMANDS}
    by_length = sorted(COMMANDS, key=len, reverse=True)
    wrong, n_seen = [], 0
    for page in PAGES:
        for words in USE.findall(page.read_text().replace("\\\n", " ")):
            name = next((one for one in by_length if f"{words} ".startswith(f"{one} ")), None)
            if name is None or name == "recipe from-megatron":  # which takes Megatron's own flags
                continue
            for option in OPTION.findall(words):
                n_seen += 1
                if option not in known[name]:
                    wrong.append(f"{page.relative_to(ROOT)}: triaxial {name} {option}")
    assert wrong == []
    assert n_seen > 200


def options_of(command):
    """All options of a command, those of its actions included."""
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [inner for one in action.choices.values() for inner in one._actions]
    return {option for action in actions for option in action.option_strings}


def test_every_promise_of_the_threat_model_names_tests_that_exist():
    """In a table with the column "test", each row names one at least."""
    lines = (ROOT / "docs/guides/reliability/threat_model.md").read_text().splitlines()
    promises, in_table = [], False
    for line in lines:
        is_row = line.startswith("|")
        if is_row and in_table and not line.startswith("|---"):
            promises.append(line)
        in_table = is_row and (in_table or line.endswith("| test |"))
    assert len(promises) > 15
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", promise)
        assert named, promise
        check_tests_exist(named)


def check_tests_exist(named):
    """Each of these tests, (file, name), is a function of its file."""
    for file, name in named:
        assert re.search(rf"(?m)^def {name}\(", (ROOT / file).read_text()), f"{file} has no {name}"


def test_every_defect_is_closed_by_tests_that_exist():
    page = (ROOT / "docs/results/reliability/defects.md").read_text()
    sections = re.split(r"(?m)^## ", page)[1:]
    assert [int(section.partition(".")[0]) for section in sections] == list(range(1, 44))
    for section in sections:
        named = re.findall(r"(?m)^- Test: `(tests/[\w/]+\.py)::(test_\w+)`\.$", section)
        assert named, section
        assert len(named) == section.count("- Test:"), section
        check_tests_exist(named)
