"""The first words of the `triaxial` command: versions, help and mistakes."""

import importlib.metadata
import re
import signal
import subprocess
import sys

import pytest

from launch.main import main


def test_the_version(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"triaxial {importlib.metadata.version('triaxial')}\n"


def test_python_m_triaxial_starts_without_torch():
    words = [sys.executable, "-X", "importtime", "-m", "triaxial", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("triaxial ")
    assert not re.search(r"\| +torch$", done.stderr, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing; use one of init, prepare, data, "),
        (["tran", "demo"], "unknown command 'tran'; did you mean 'train'? See `triaxial --help`"),
        (["data"], "triaxial data needs one more word: mixture or audit. See `triaxial --help`"),
        (["train", "gpt_125m"], "no shipped recipe has this name; did you mean 'gpt3_125m'?"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_help_of_a_command_with_a_recipe_says_that_keys_can_be_set(capsys):
    for words in (["train", "--help"], ["parity", "--help"], ["prepare", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "--section.key" in capsys.readouterr().out.lower()


def test_help_of_a_command_with_a_model_says_that_only_its_layout_can_be_set(capsys):
    for words in (["generate", "--help"], ["evaluate", "--help"], ["score", "--help"], ["moderate", "score", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        shown = capsys.readouterr().out
        assert "--parallel.pipeline" in shown
        assert "Every key of the recipe" not in shown


def test_help_of_a_group_of_commands_lists_them(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["moderate", "--help"])
    assert ended.value.code == 0
    assert re.search(r"^  taxonomy +check the categories", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_shuts_down_does_not_change_the_status(number):
    program = (
        "import atexit, sys, time; from launch.main import main; "
        "atexit.register(lambda: (print('leaving', flush=True), time.sleep(1))); "
        "sys.argv = ['triaxial', 'no such command']; sys.exit(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"leaving\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == 2
        assert process.stderr.read().count(b"\n") == 1, "the mistake, and no traceback"
