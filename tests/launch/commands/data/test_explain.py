"""`triaxial explain` prints what tests/launch/runs/test_trail.py shows to be right."""

import json

import pytest

from launch.commands.data import explain
from launch.main import COMMANDS, main

pytest.importorskip("resiliparse", reason="needs the extra 'data'")


def test_fate_and_steps_are_printed(prepared, capsys):
    folder, _ = prepared
    assert COMMANDS["explain"][0] == explain.__name__
    capsys.readouterr()
    assert main(["explain", str(folder / "run"), str(folder / "0.jsonl"), "--json", "-"]) == 0
    documents = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len(documents) == 30
    one = next(document for document in documents if document["readings"])
    steps = sorted({reading["step"] for reading in one["readings"]})
    assert main(["explain", str(folder / "run"), one["id"]]) == 0
    shown = capsys.readouterr().out
    assert "dedup_exact: passed" in shown
    assert f"kept as {one['id']} in the" in shown
    assert f"({one['id']}): planned for step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}\n" in shown


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_unknown_source_is_one_line(prepared, capsys, tmp_path, elsewhere):
    folder, _ = prepared
    capsys.readouterr()
    words = ["--work", str(tmp_path)] if elsewhere else []
    assert main(["explain", str(folder / "run"), "nobody", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    reason = "Run `triaxial prepare` on this recipe first" if elsewhere else "no document 'nobody' was read or dropped"
    assert reason in line
