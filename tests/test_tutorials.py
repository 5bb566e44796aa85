"""Every tutorial works: the test takes the steps of each page in order, in a copy of the source.

Each fenced block in a page of docs/tutorials/ is a step:

- `console`: a line after `$ ` is a command, which bash runs in the top folder and which must succeed. The lines below
  it are its whole output, if there are any. `...` stands for any part of a line, or alone for any lines. Numbers of
  spaces do not count.
- `diff`: a change of the file that the last line above the block names, as in "Change `launch/main.py`:". Removed and
  unchanged lines, which start with `-` and a space, must occur there exactly once. A line `@@` starts another place.
- any other language: the content of a new file, named in the same way.

Code blocks by indentation are for the reader alone.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
COPIED = ("gpt", "parallel", "data_prep", "launch", "slurm")
NEED_DATA = (
    "add_a_filter",
    "cluster",
    "fine_tune",
    "first_model",
    "moderation",
    "your_own_data",
)  # pages that prepare a corpus
BLOCK = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
NAMED = re.compile(r"`([\w./-]+)`:\s*\Z")


@dataclass(frozen=True)
class Step:
    """`text`: the content of a file, a diff, or the output of the command `target`; otherwise `target` is a path."""

    kind: Literal["write", "change", "command"]
    target: str
    text: str


def steps_of(page: str) -> list[Step]:
    steps = []
    for block in BLOCK.finditer(page):
        language, text = block.groups()
        if language == "console":
            assert text.startswith("$ "), f"a console block does not start with a command: {text}"
            for one in re.split(r"(?m)^\$ ", text)[1:]:
                command, output = re.fullmatch(r"(?s)((?:[^\n]*\\\n)*[^\n]*)\n(.*)", one).groups()
                steps.append(Step("command", command, output))
            continue
        named = NAMED.search(page[: block.start()])
        assert named, f"the text above this block names no file:\n{block.group()}"
        steps.append(Step("change" if language == "diff" else "write", named.group(1), text))
    return steps


def change(text: str, diff: str) -> str:
    """The text of a file after a diff."""
    for place in re.split(r"(?m)^@@.*\n", diff):
        lines = place.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        new = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        assert f"\n{text}".count(f"\n{old}") == 1, f"these lines must occur exactly once:\n{old}"
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}").removeprefix("\n")
    return text


def fits(printed: str, expected: str) -> bool:
    """Whether an output is the one that a page shows."""
    pattern = ""
    for line in expected.splitlines():
        text = re.escape(" ".join(line.split())).replace(re.escape("..."), ".*")
        pattern += r"(?:.*\n)*" if text == ".*" else text + r"\n"
    return re.fullmatch(pattern, "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())) is not None


def take(step: Step, folder: Path) -> None:
    """Take one step in a copy of the source."""
    path = folder / step.target
    if step.kind == "write":
        assert not path.exists(), f"{step.target} exists already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
    elif step.kind == "change":
        path.write_text(change(path.read_text(), step.text))
    else:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-c", step.target],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
        )
        assert done.returncode == 0, f"$ {step.target}\n{done.stdout}"
        assert not step.text or fits(done.stdout, step.text), (
            f"$ {step.target}\n{done.stdout}\n-- expected\n{step.text}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_steps_of_a_tutorial_work(page, tmp_path):
    if page.stem in NEED_DATA:
        pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
    for package in COPIED:  # with its __pycache__, so that nothing is compiled again
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    steps = steps_of(page.read_text())
    assert {step.kind for step in steps} >= {"write", "command"}
    for step in steps:
        take(step, tmp_path)


@pytest.mark.parametrize(
    ("printed", "expected", "is_fit"),
    [
        ("loss  3.25\n", "loss 3.25\n", True),
        ("loss 3.26\n", "loss 3.25\n", False),
        ("loss 3.25 after 2 s\n", "loss 3... after ... s\n", True),
        ("loss 3.25\nmore\n", "loss 3.25\n", False),
        ("loss 3.25\nmore\nend\n", "loss 3.25\n...\nend\n", True),
        ("loss 3.25\nend\n", "...\nend\n", True),
        ("loss 3.25\nend\n", "...\nloss 4...\n", False),
    ],
)
def test_outputs_are_compared_with_the_page(printed, expected, is_fit):
    assert fits(printed, expected) == is_fit


def test_a_change_must_fit_the_file():
    assert change("a\nb\n\nc\n", " a\n-b\n+B\n@@\n+x\n c\n") == "a\nB\n\nx\nc\n"
    for diff in ("-d\n", " a\n-c\n", "-b\n+b\n@@\n-B\n"):
        with pytest.raises(AssertionError, match="exactly once"):
            change("a\nb\n\nc\n", diff)
    with pytest.raises(AssertionError, match="exactly once"):
        change("a\nb\na\n", "-a\n+c\n")


def test_a_failing_command_fails_the_test(tmp_path):
    take(Step("command", "echo so", "so\n"), tmp_path)
    with pytest.raises(AssertionError, match="expected"):
        take(Step("command", "echo so", "not so\n"), tmp_path)
    with pytest.raises(AssertionError, match="no"):
        take(Step("command", "echo no; exit 3", ""), tmp_path)
