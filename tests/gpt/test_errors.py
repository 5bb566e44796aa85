"""The values that error messages suggest, and the message about a missing extra."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.errors import (
    MAX_LINE,
    ConfigError,
    did_you_mean,
    escaped,
    import_extra,
    install_command,
    nearest,
    nearest_divisors,
    nearest_multiples,
)


def test_an_extra_is_installed_from_the_checkout_or_the_users_wheel(tmp_path):
    root = Path(__file__).parents[2]
    assert install_command("hf") == f"pip install -e '{root}[hf]'"
    shutil.copytree(root / "gpt", tmp_path / "gpt", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from gpt.errors import install_command; print(install_command('hf'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout == (
        "pip install 'WHEEL[hf]', where WHEEL is the path of the triaxial-*.whl that you installed\n"
    ), done.stderr


def test_no_message_names_a_package_that_is_not_published():
    root = Path(__file__).parents[2]
    files = [file for name in ("gpt", "parallel", "data_prep", "launch", "docs") for file in (root / name).rglob("*")]
    named = [file for file in files if file.suffix in (".py", ".md") and "pip install 'triaxial" in file.read_text()]
    assert named == []


@pytest.mark.parametrize(
    ("wanted", "allowed", "found"),
    [
        (5, [1, 2, 4, 8], [4, 8]),
        (4, [1, 2, 4, 8], [4]),
        (9, [1, 2, 4, 8], [8]),
        (0, [1, 2], [1]),
        (5, [8, 1, 4], [4, 8]),
        (5, [], []),
    ],
)
def test_nearest_is_the_last_value_up_to_the_wanted_one_and_the_first_from_it_on(wanted, allowed, found):
    assert nearest(wanted, allowed) == found


def test_divisors_and_multiples_are_named_as_alternatives():
    assert nearest_divisors(12, 8) == "6 or 12"
    assert nearest_divisors(12, 20) == "12"
    assert nearest_multiples(2048, 5000) == "4096 or 6144"
    assert nearest_multiples(2048, 100) == "2048", "0 is no size"


def test_a_missing_extra_gives_the_pip_command():
    with pytest.raises(
        ConfigError, match=r"'no_such_package_anywhere' is not installed.*: pip install -e '.*\[data\]'"
    ):
        import_extra("no_such_package_anywhere", extra="data")
    assert import_extra("json", extra="data").__name__ == "json"


def test_a_misspelt_word_suggests_the_most_similar_one():
    assert did_you_mean("tensors", ["data", "tensor", "pipeline"]) == "did you mean 'tensor'?"
    assert did_you_mean("xyz", ["data", "tensor"]) == ""


def test_an_error_is_one_short_line_whatever_file_it_quotes():
    hostile = "x\x1b]0;title\x07\n\ttriaxial: all is well\r\x9b2J\u202egnp.exe\u2028\ud800"
    assert str(ConfigError(hostile)) == (r"x\x1b]0;title\x07\n\ttriaxial: all is well\r\x9b2J\u202egnp.exe\u2028\ud800")
    long = str(ConfigError("a" + "\x1b" * 10**6 + "z"))
    assert len(long) < 5 * MAX_LINE
    assert (long[0], long[-1]) == ("a", "z")


def test_text_of_a_model_keeps_its_lines_and_scripts():
    text = "def f():\n\treturn 1\n שלום \U0001f468\u200d\U0001f469\u00a0\u3000é"
    assert escaped(text) == text
    assert escaped("a\x08b\rc\x7f") == r"a\x08b\rc\x7f"
