"""Every command answers `--help` and wrong arguments without torch, whose import takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.main import COMMANDS

RUN = "a-folder-without-a-run"
WRONG = {  # module -> (words, part of the answer)
    "launch.commands.arguments.answer": (
        ["answer", RUN, "--questions", "none", "--output", "out", "--seed", "-1"],
        "--seed -1 is invalid",
    ),
    "launch.commands.arguments.best_of_n": (
        ["best-of-n", RUN, "--prompts", "none", "--reward", "none", "--output", "out", "--n", "0"],
        "--n 0 is invalid",
    ),
    "launch.commands.arguments.choose": (
        ["choose", RUN, "--prompts", "none", "--reward", "none", "--temperature", "-1"],
        "--temperature -1.0 is invalid",
    ),
    "launch.commands.arguments.compare": (["compare", RUN], "a comparison needs at least two"),
    "launch.commands.arguments.convert": (["convert", RUN, "--to", "hf"], "--output is missing"),
    "launch.commands.arguments.data_audit": (["data", "audit", RUN, "--setp", "1"], "--step --steps --positions"),
    "launch.commands.arguments.evaluate": (["evaluate", RUN, "--batch-tokens", "0"], "--batch-tokens 0 is invalid"),
    "launch.commands.arguments.generate": (["generate", RUN, "--top-p", "2"], "top_p = 2.0 is invalid"),
    "launch.commands.arguments.parity": (["parity", "demo", "--steps", "0"], "--steps 0 is invalid"),
    "launch.commands.arguments.score": (["score", RUN], "there is nothing to score"),
    "launch.commands.arguments.tax": (["tax", RUN, RUN, "--batch-tokens", "0"], "--batch-tokens 0 is invalid"),
    "launch.commands.arguments.toxicity": (
        ["toxicity", RUN, "--prompts", "none", "--scorer", "none", "--n", "0"],
        "--n 0 is invalid",
    ),
}
WRONG_RUNS = [  # the most frequent mistake: a path that is no run
    ["answer", RUN, "--questions", "none", "--output", "out"],
    ["best-of-n", RUN, "--prompts", "none", "--reward", "none", "--output", "out"],
    ["evaluate", RUN],
    ["generate", RUN],
    ["moderate", "export", RUN, "--to", "out"],
    ["moderate", "heads", RUN, "--labels", "none"],
    ["moderate", "serve", RUN],
    ["moderate", "score", RUN, "none", "--output", "out.jsonl"],
]

WRONG_RANKS = [
    ["answer", RUN, "--questions", "none", "--output", "out", "--nproc", "0"],
    ["evaluate", RUN, "--nproc", "0"],
    ["generate", RUN, "--nproc", "0"],
    ["moderate", "score", RUN, "none", "--output", "out.jsonl", "--nproc", "0"],
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The answer to each of the words below, from one process: its status, its text, and whether torch was loaded."""
    asked = [[*name.split(), "--help"] for name in COMMANDS]
    asked += [words for words, _ in WRONG.values()] + WRONG_RUNS + WRONG_RANKS
    code = (
        "import contextlib, io, json, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            asked.append(name)\n"
        "            raise ImportError('torch is not needed to answer this')\n"
        "asked = []\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from launch.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    asked.clear()\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):\n"
        "        try:\n"
        "            status = main(words)\n"
        "        except SystemExit as ended:\n"
        "            status = ended.code\n"
        "        except ImportError:\n"
        "            status = 1\n"
        "    facts = {'words': words, 'status': status, 'text': out.getvalue(), 'torch': bool(asked)}\n"
        "    print(json.dumps(facts))\n"
    )
    here = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-c", code, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_needs_no_torch(answers):
    helped = {" ".join(one["words"][:-1]): one for one in answers if one["words"][-1] == "--help"}
    assert helped.keys() == COMMANDS.keys()
    assert all(one["status"] == 0 and "usage: triaxial" in one["text"] for one in helped.values())
    assert [name for name, one in helped.items() if one["torch"]] == []


@pytest.mark.parametrize("module", WRONG)
def test_a_wrong_argument_needs_no_torch(answers, module):
    words, message = WRONG[module]
    assert COMMANDS[words[0] if words[0] in COMMANDS else " ".join(words[:2])][0] == module
    (found,) = (one for one in answers if one["words"] == words)
    assert found["status"] == 2
    assert message in found["text"]
    assert not found["torch"]


@pytest.mark.parametrize("words", WRONG_RUNS, ids=lambda words: " ".join(words[: words.index(RUN)]))
def test_a_wrong_path_of_a_run_needs_no_torch(answers, words):
    (found,) = (one for one in answers if one["words"] == words)
    assert found["status"] == 2
    assert f"{RUN}: no such folder" in found["text"]
    assert not found["torch"]


@pytest.mark.parametrize("words", WRONG_RANKS, ids=lambda words: " ".join(words[: words.index(RUN)]))
def test_a_wrong_number_of_processes_needs_no_torch(answers, words):
    """It is also named before a wrong path."""
    (found,) = (one for one in answers if one["words"] == words)
    assert found["status"] == 2
    assert "--nproc 0 is invalid: must be at least 1" in found["text"]
    assert not found["torch"]


def test_every_module_of_arguments_is_tried():
    folder = Path(__file__).parents[4] / "launch" / "commands" / "arguments"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {f"launch.commands.arguments.{name}" for name in names} == WRONG.keys()
