"""`triaxial parity` as users run it: the matrix, the files it writes, its exit status, and its mistakes."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import typing
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from html import escape
from pathlib import Path

import pytest

from launch.main import main
from parallel.layout.config import ParallelConfig

TRIAXIAL = [sys.executable, "-m", "launch.main"]
# the axis on which each mode must have been tried
MODES_OF = {"tensor": ("recompute",), "pipeline": ("recompute", "schedule"), "data": ("recompute", "zero_stage")}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def parity(*words, command=TRIAXIAL, timeout=280, **variables):
    return subprocess.run(
        [*command, "parity", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**ENVIRONMENT, **variables},
        check=False,
    )


@pytest.fixture(scope="module")
def everything(tiny_corpus, tmp_path_factory):
    """All layouts that fit in two processes, for a model with a layer for each of four stages."""
    folder = tmp_path_factory.mktemp("parity") / "new"
    done = parity(
        *(tiny_corpus.recipe, "--processes", 2, "--steps", 3, "--output", folder),
        *("--model.n_layers", 4, "--batch.micro_batch_size", 8),
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return folder, done, json.loads((folder / "parity.json").read_text())


def test_every_mode_that_fits_agrees_with_one_process(everything):
    _, done, found = everything
    layouts = {row["layout"]: row for row in found["layouts"]}
    assert len(layouts) == len(found["layouts"])
    settings = [row["parallel"] for row in layouts.values()]
    for axis, modes in MODES_OF.items():
        for key in modes:
            there = {parallel[key] for parallel in settings if parallel[axis] == 2}
            assert there == set(typing.get_args(typing.get_type_hints(ParallelConfig)[key])), (axis, key)
    assert found["steps"] == 3
    assert found["passed"]
    assert found["initial_weights_identical"] is True
    assert 0 < found["max_relative_loss_difference"] < 1e-5
    assert 0 < found["max_relative_grad_norm_difference"] < 1e-4
    assert 0 < found["max_relative_gradient_difference"] < 2e-5
    for row in (found["reference"], *layouts.values()):
        assert row["gradients"].keys() == found["reference"]["gradients"].keys(), "every layout has every parameter"
        assert len(row["losses"]) == len(row["grad_norms"]) == 3
        assert row["initial_weights"] == found["reference"]["initial_weights"]
        assert row["losses"][2] < row["losses"][0]
        assert any(line.strip().startswith(f"{row['layout']} ") for line in done.stdout.splitlines()), (
            "a row of the table"
        )


def test_the_micro_batch_shrinks_if_data_ranks_need_it(everything):
    """Each of two data ranks has 4 of the 8 sequences that are the recipe's micro-batch."""
    for axis, sizes in (("tensor", {8}), ("data", {4})):
        rows = [row for row in everything[2]["layouts"] if row["parallel"][axis] == 2]
        assert {row["micro_batch_size"] for row in rows} == sizes


def test_impossible_layouts_are_listed_with_the_reason(everything):
    _, done, found = everything
    (skipped,) = found["skipped"]
    assert skipped["layout"] == "offload=true"
    assert "parallel.offload = true with device 'cpu'" in skipped["reason"]
    assert "skipped offload=true: parallel.offload = true with device 'cpu'" in done.stdout


def test_the_page_has_the_verdict_and_a_line_for_every_layout(everything):
    folder, done, found = everything
    page = (folder / "parity.html").read_text()
    assert escape(next(line for line in done.stdout.splitlines() if line.startswith("parity: PASSED"))) in page
    picture = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])
    names = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in picture.iter(f"{names}text")]
    for row in found["layouts"]:
        assert texts.count(row["layout"]) == 1, "in the legend"
    curves = [element.get("d") for element in picture.iter(f"{names}path") if element.find(f"{names}title") is not None]
    assert len(curves) == len(found["layouts"]) + 1, "and the tolerance"
    assert all(curve.count("L") == 2 for curve in curves), "three steps"
    width, height = map(float, picture.get("viewBox").split()[2:])
    for curve in curves:
        points = [tuple(map(float, point.split())) for point in curve.strip("M").split("L")]
        assert all(0 < x < width and 0 < y < height for x, y in points)


def parity_here(*words):
    """As `parity`, but the command runs in this process, whose fork server has already loaded torch."""
    return main(["parity", *map(str, words)])


def test_a_difference_above_the_tolerance_sets_the_exit_status(tiny_corpus, tmp_path, capfd):
    words = ("--layout", "tensor=2", "--steps", 2, "--tolerance", 1e-30, "--norm-tolerance", 1e-30, "--no-page")
    assert parity_here(tiny_corpus.recipe, *words, "--output", tmp_path) == 1
    assert "tensor=2: the gradient norm of step 1 differs by" in capfd.readouterr().out
    found = json.loads((tmp_path / "parity.json").read_text())
    assert not found["passed"]
    assert found["failures"]
    assert not (tmp_path / "parity.html").exists()


WRONG = [sys.executable, str(Path(__file__).parents[1] / "wrong_gradients.py")]


@pytest.mark.parametrize(
    ("pattern", "first", "norm_differs"),
    [("*", "embed.tokens.weight", True), ("blocks.1.mlp_norm.bias", "blocks.1.mlp_norm.bias", False)],
)
def test_a_halved_gradient_is_caught_though_the_loss_hides_it(tiny_corpus, tmp_path, pattern, first, norm_differs):
    """AdamW divides a factor out of the gradient, so the loss stays the same."""
    done = parity(
        *(tiny_corpus.recipe, "--layout", "data=2", "--steps", 2, "--no-page", "--output", tmp_path),
        *("--optimizer.max_gradient_norm", "1e9"),
        command=WRONG,
        WRONG_GRADIENTS=f"{pattern} 0.5",
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["max_relative_loss_difference"] < 1e-6
    assert (found["layouts"][0]["relative_grad_norm_difference_at_step_1"] > 1e-4) == norm_differs
    failures = [
        line for line in done.stdout.splitlines() if line.startswith("triaxial: parity: data=2: the gradient of ")
    ]
    assert len(failures) == 1, done.stdout
    assert f"the gradient of {first} at step 1 differs by" in failures[0]


def test_bf16_is_compared_with_other_splits_of_one_process(tiny_corpus, tmp_path, capfd):
    words = ("--layout", "data=2,zero_stage=3", "--precision", "bf16", "--steps", 6, "--no-page")
    assert parity_here(tiny_corpus.recipe, *words, "--output", tmp_path) == 0
    found = json.loads((tmp_path / "parity.json").read_text())
    assert [row["micro_batch_size"] for row in found["yardsticks"]] == [1, 4, 8]
    assert found["reference"]["micro_batch_size"] == 2
    assert found["yardsticks"][0]["losses"] != found["reference"]["losses"]
    (row,) = found["layouts"]
    assert row["parallel"]["precision"] == "bf16"
    one = [found["reference"], *found["yardsticks"]]
    pairs = [zip(a["losses"], b["losses"], strict=True) for a, b in itertools.combinations(one, 2)]
    spread = max(abs(a - b) / b for pair in pairs for a, b in pair)
    assert found["yardstick_spread"] == pytest.approx(spread, rel=0.01)
    assert 0 < found["yardstick_spread"] < 1e-3
    gradients = [split["max_relative_gradient_difference"] for split in (row, *found["yardsticks"])]
    assert 0 < max(gradients) < found["gradient_tolerance"] == 0.1, gradients
    assert row["times_yardstick_spread"] == pytest.approx(row["max_relative_loss_difference"] / spread, rel=0.01)
    assert f"the spread is {spread:.1e}" in capfd.readouterr().out


def test_the_recipes_own_layout_is_the_default(tiny_corpus, tmp_path):
    words = ("--parallel.pipeline", 2, "--parallel.schedule", "gpipe", "--steps", 1, "--no-page")
    assert parity_here(tiny_corpus.recipe, *words, "--output", tmp_path) == 0
    (row,) = json.loads((tmp_path / "parity.json").read_text())["layouts"]
    assert row["layout"] == "pipeline=2,schedule=gpipe"


@pytest.fixture
def short_path(tmp_path_factory):
    """A folder with a short name, so that the names of sockets in it are short enough."""
    return tmp_path_factory.mktemp("p")


@contextmanager
def running(recipe, folder, *, ranks_wanted):
    """Run the command until its ranks run, of the reference or of the layout after it; kills all of them at the end."""
    for name in ("temporary", "out"):
        (folder / name).mkdir()
    for name in ("parity.json", "parity.html"):
        (folder / "out" / name).write_text("of an earlier run")
    words = ("--layout", "pipeline=2", "--steps", "200", "--no-page", "--output", str(folder / "out"))
    process = subprocess.Popen(
        [*TRIAXIAL, "parity", str(recipe), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "TMPDIR": str(folder / "temporary")},
    )
    ranks = []
    try:
        if ranks_wanted == 2:
            first = next(line for line in process.stdout if line.startswith("[1/2]"))
            assert re.search(r" s, about (\d+m )?\d+s left$", first.rstrip()), first
        while len(ranks) < ranks_wanted:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
            ranks = sorted(pid for child in children(process.pid) for pid in children(child))
        yield process, ranks
    finally:
        process.kill()
        for pid in alive(ranks):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_a_rank_that_is_killed_ends_the_command_and_is_named(tiny_corpus, short_path):
    with running(tiny_corpus.recipe, short_path, ranks_wanted=2) as (process, ranks):
        assert not list((short_path / "out").iterdir()), "results of an earlier run are deleted"
        os.kill(ranks[1], signal.SIGKILL)  # the last one started
        _, errors = process.communicate(timeout=100)
        assert not alive(ranks)
    assert process.returncode == 1
    said = "layout pipeline=2: rank 1 of 2 failed first (killed by SIGKILL"
    assert errors.startswith(f"triaxial: error: {said}"), errors
    assert [path.name for path in (short_path / "out").iterdir()] == ["parity.json"]
    found = json.loads((short_path / "out" / "parity.json").read_text())
    assert found["passed"] is False
    assert found["failures"][0].startswith(said)
    assert len(found["reference"]["losses"]) == 200
    assert found["layouts"] == []
    assert found["max_relative_loss_difference"] is None


def test_without_a_reference_the_report_is_failed(tiny_corpus, short_path):
    with running(tiny_corpus.recipe, short_path, ranks_wanted=1) as (process, ranks):
        os.kill(ranks[0], signal.SIGKILL)
        process.communicate(timeout=100)
    assert process.returncode == 1
    found = json.loads((short_path / "out" / "parity.json").read_text())
    assert (found["passed"], found["reference"], found["layouts"]) == (False, None, [])
    assert found["failures"][0].startswith("layout one process: rank 0 of 1 failed first (killed by SIGKILL")


@pytest.mark.parametrize(
    ("number", "status", "left"), [(signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 0), (signal.SIGHUP, 129, 0)]
)
def test_no_rank_outlives_a_killed_command(tiny_corpus, short_path, number, status, left):
    with running(tiny_corpus.recipe, short_path, ranks_wanted=2) as (process, ranks):
        time.sleep(0.5)  # during their start or training
        everybody = [*children(process.pid), *ranks]
        process.send_signal(number)
        assert process.wait(timeout=20) == status
        deadline = time.monotonic() + 15
        while alive(everybody) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(everybody)
    assert len(list((short_path / "temporary").glob("triaxial_*"))) == left, "only kill -9 leaves it"
    assert not list((short_path / "temporary").glob("*/1/result.json")), "they trained to the end"


def alive(pids):
    """The processes that run; a zombie does not."""
    if not pids:
        return []  # without ids, ps would show all processes
    found = subprocess.run(["ps", "-o", "pid=,stat=", *map(str, pids)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if not line.split()[1].startswith("Z")]


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--layout", "tensor=3"], ["--layout tensor=3", "must divide model.n_heads = 2. Use 2"]),
        (["--layout", "tensor"], ["'tensor' must be KEY=VALUE"]),
        (["--layout", "tensors=2"], ["parallel.tensors", "did you mean 'tensor'"]),
        (["--layout", "pipeline=2,schedule=gpip"], ["parallel.schedule = 'gpip'", "did you mean 'gpipe'"]),
        (["--layout", "tensor=1"], ["--layout tensor=1", "one process, which is the reference"]),
        (["--layout", "schedule=gpipe,zero_stage=3"], ["one process, which is the reference"]),
        (["--layout", "tensor=2,precision=bf16"], ["precision=bf16", "Use --precision"]),
        (["--layout", "tensor=2,offload=true"], ["--layout tensor=2,offload=true", "offload = true with device 'cpu'"]),
        (["--layout", "tensor=2", "--processes", "2"], ["--layout and --processes exclude each other"]),
        (["--layout", "tensor=2", "--parallel.data", "2"], ["--parallel.data", "--layout KEY=VALUE"]),
        (["--processes", "0"], ["--processes 0 is invalid: must be at least 1"]),
        (["--steps", "0", "--processes", "2"], ["--steps 0 is invalid: must be at least 1"]),
        (["--tolerance", "-1", "--processes", "2"], ["--tolerance -1.0"]),
        (["--gradient-tolerance", "inf", "--processes", "2"], ["--gradient-tolerance inf"]),
        (["--engines", "natve", "--processes", "2"], ["--engines natve", "did you mean 'native'"]),
        (["--engines", "native,native", "--processes", "2"], ["--engines native,native", "native is there twice"]),
        (["--engines", "native", "--layout", "tensor=2,engine=native"], ["engine=native", "Leave engine out"]),
        (
            ["--engines", "native", "--layout", "tensor=3"],
            ["--layout tensor=3", "must divide model.n_heads = 2. Use 2"],
        ),
        (["--engines", "native"], ["no engine of --engines takes this layout"]),
        (["--norm-tolerance", "nan", "--processes", "2"], ["--norm-tolerance nan"]),
        ([], ["runs in one process", "--layout tensor=2"]),
    ],
)
def test_mistakes_end_in_one_line_before_anything_runs(tiny_corpus, tmp_path, capsys, words, parts):
    status = main(["parity", str(tiny_corpus.recipe), *words, "--no-page", "--output", str(tmp_path / "out")])
    one_line(status, capsys.readouterr().err, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["a file", "a file/under it", "/proc", "/proc/new"])
def test_an_unwritable_output_is_reported_before_anything_runs(tiny_corpus, tmp_path, capsys, where):
    (tmp_path / "a file").write_text("kept")
    words = ["--layout", "tensor=2", "--no-page", "--output", str(tmp_path / where)]
    status = main(["parity", str(tiny_corpus.recipe), *words])
    said = capsys.readouterr()
    one_line(status, said.err, f"--output = '{tmp_path / where}' is invalid: must be a folder to write parity.json")
    assert "[1/" not in said.out
    assert (tmp_path / "a file").read_text() == "kept"


def one_line(status, errors, *parts):
    assert status == 2, (status, errors)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    for part in parts:
        assert part in lines[0], (part, lines[0])
