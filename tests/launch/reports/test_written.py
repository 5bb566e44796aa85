"""`--json FILE` in a command of its own: a file, standard output, and files that cannot be written."""

import argparse
import json
import os
import sys

import pytest

from gpt.errors import ConfigError
from launch.main import main
from launch.reports.written import add_json_option, check_destination, json_destination, write_page


def test_a_file_holds_one_json_text_for_each_call(tmp_path, capsys):
    with json_destination(str(tmp_path / "x.json"), indent=None) as emit:
        print("a table")
        emit({"a": float("nan")})
        emit([1])
        assert not (tmp_path / "x.json").exists()
    assert [json.loads(line) for line in (tmp_path / "x.json").read_text().splitlines()] == [{"a": None}, [1]]
    assert capsys.readouterr().out == f"a table\nwrote {tmp_path}/x.json\n"
    assert os.listdir(tmp_path) == ["x.json"]


def test_after_an_error_the_file_is_as_before(tmp_path):
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(ZeroDivisionError), json_destination(str(tmp_path / "x.json")) as emit:
        emit(1 // 0)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "old")]


def test_with_a_dash_standard_output_holds_only_json(capsys):
    with json_destination("-") as emit:
        print("a table")
        emit({"a": 1})
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == ({"a": 1}, "a table\n")
    with json_destination(None) as emit:
        print("a table")
        emit({"a": 1})
    assert capsys.readouterr().out == "a table\n"


def test_an_old_switch_works_and_says_what_to_write(capsys):
    parser = argparse.ArgumentParser()
    add_json_option(parser, "facts", was_switch=True)
    with json_destination(parser.parse_args(["--json"]).json) as emit:
        emit([])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("[]\n", "--json without FILE is standard output. Write --json -\n")
    assert parser.parse_args(["--json", "-"]).json == "-"


@pytest.mark.parametrize(("path", "fault"), [("/nonexistent/x", "no such folder"), ("/tmp", "it is a folder")])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(path, fault):
    message = f"--json {path} cannot be written: {fault}"
    with pytest.raises(ConfigError, match=message), json_destination(path):
        pytest.fail("the block is not entered")
    with pytest.raises(ConfigError, match=message):
        check_destination("--json", path)
    with pytest.raises(ConfigError, match=f"--html {path} cannot be written: {fault}"):
        write_page("--html", path, "text")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "RUN", "--html", "/nonexistent/x.html"],
        ["report", "RUN", "--json", "/nonexistent/x.json"],
        ["report", "RUN", "--scaling", "--svg", "/nonexistent/x.svg"],
        ["data", "audit", "RUN", "--step", "1", "--json", "/nonexistent/x.json"],
        ["data", "mixture", "mixture_gpt3", "--json", "/nonexistent/x.json"],
        ["doctor", "--json", "/nonexistent/x.json"],
        ["evaluate", "RUN", "--tasks", "none", "--json", "/nonexistent/x.json"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_such_a_file_with_one_line(made, words, capsys):
    assert main([str(made.directory) if word == "RUN" else word for word in words]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (out, "cannot be written: no such folder" in line) == ("", True)


def test_json_is_not_for_pages_of_several_runs(made, tmp_path, capsys):
    words = ["report", str(made.directory), str(made.directory), "--html", str(tmp_path / "x.html")]
    assert main([*words, "--json", str(tmp_path / "x.json")]) == 2
    assert f"--json {tmp_path}/x.json is for one run, or for --scaling. Leave it out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_command_prints_only_json_for_a_dash(capsys):
    assert main(["data", "mixture", "mixture_gpt3", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["corpora"]
    assert "sequences of" in said.err
    assert sys.stdout is not sys.stderr
