"""run.deterministic: two runs of one recipe are bit-identical, or the error names the operation that prevents it."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from launch.main import main
from parallel.engines.native import NativeEngine

COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()
STEPS = 3
LAYOUTS = {  # each with options that exercise more code
    "data": ["--parallel.zero_stage", "3"],
    "tensor": ["--parallel.precision", "bf16", "--train.z_loss", "1e-3"],
    "pipeline": ["--checkpoint.every_tokens", "1024"],
}
QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--health.watchdog", "false"]
MODE = ["--run.deterministic", "true"]
SHORT = ["--train.total_tokens", str(STEPS * 512), "--train.validation_tokens", "64"]


@pytest.fixture(scope="module")
def twice(tiny_corpus, watched_ranks, tmp_path_factory):
    """Two runs of the same recipe for each layout."""
    folder = tmp_path_factory.mktemp("twice")
    plan = []
    for axis, more in LAYOUTS.items():
        for name in ("first", "second"):
            words = [tiny_corpus.recipe, "--run.directory", folder / f"{axis} {name}" / "run", f"--parallel.{axis}", 2]
            words += [*QUIET, *MODE, *SHORT, *more]
            plan.append({"name": f"{axis} {name}", "nproc": 2, "words": [*map(str, words)], "digests": True})
    return folder, watched_ranks.launch(folder, plan)


@pytest.mark.parametrize("axis", LAYOUTS)
def test_two_runs_on_one_layout_are_bit_identical(twice, axis):
    folder, runs = twice
    first, second = (runs[f"{axis} {name}"] for name in ("first", "second"))
    assert (first["failed"], second["failed"]) == ("", "")
    assert [len(lines) for lines in first["ranks"]] == [STEPS, STEPS]
    assert first["ranks"] == second["ranks"], "losses, norms, tokens and weights after every step, on both ranks"
    summaries = [json.loads((folder / f"{axis} {name}/run/train_summary.json").read_text()) for name in
                 ("first", "second")]  # fmt: skip
    assert len(summaries[0]["weights_sha256"]) == 64
    for key in ("weights_sha256", "validation_loss_nats"):
        assert summaries[0][key] == summaries[1][key]
    logged = [metrics(folder / f"{axis} {name}/run") for name in ("first", "second")]
    assert logged[0] == logged[1]
    assert all(("z_loss" in line) == (axis == "tensor") for line in logged[0])


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"tokens_per_s", "step_s", "mfu", "peak_memory_bytes", "time", "elapsed_s"}
    measured = [{key for key in line if key.startswith("memory/")} | timed for line in lines]
    return [
        {key: line[key] for key in line.keys() - left_out}
        for line, left_out in zip(lines, measured, strict=True)
        if "loss" in line
    ]


def test_several_threads_sum_in_a_fixed_order_and_another_seed_gives_other_bits(tiny_corpus, tmp_path, capsys):
    before = torch.get_num_threads()
    logged, weights = [], []
    try:
        torch.set_num_threads(3)
        for number, seed in enumerate((7, 7, 8)):
            run = tmp_path / str(number)
            words = ["--model.d_model", 192, "--run.seed", seed, "--run.directory", run, *QUIET, *MODE, *SHORT]
            assert main(["train", str(tiny_corpus.recipe), *map(str, words)]) == 0
            logged.append(metrics(run))
            weights.append(json.loads((run / "train_summary.json").read_text())["weights_sha256"])
    finally:
        torch.set_num_threads(before)
    assert "3 threads a rank" in capsys.readouterr().out
    assert logged[0] == logged[1] != logged[2]
    assert weights[0] == weights[1] != weights[2]
    assert not torch.are_deterministic_algorithms_enabled(), "the settings of this process are restored"


@pytest.mark.rehearse
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_two_compiled_runs_are_bit_identical(tiny_corpus, watched_ranks, tmp_path):
    """The second run loads compiled code from torch's cache on disk; that must not change the bits."""
    plan = []
    for name in ("first", "second"):
        words = [tiny_corpus.recipe, "--run.directory", tmp_path / name / "run", *QUIET, *MODE, *SHORT]
        words += ["--parallel.data", 2, "--parallel.compile", "true", "--parallel.precision", "bf16"]
        plan.append({"name": name, "nproc": 2, "words": [*map(str, words)], "digests": True})
    runs = watched_ranks.launch(tmp_path, plan, timeout_s=1500)
    assert (runs["first"]["failed"], runs["second"]["failed"]) == ("", "")
    assert [len(lines) for lines in runs["first"]["ranks"]] == [STEPS, STEPS]
    assert runs["first"]["ranks"] == runs["second"]["ranks"]


def test_an_operation_without_a_deterministic_implementation_is_named_in_one_line(
    tiny_corpus, tmp_path, capsys, monkeypatch
):
    """put_ is one, also on a CPU: which of two values for one index is written last depends on the threads."""
    original = NativeEngine.forward_backward

    def with_put(engine, batch):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))
        original(engine, batch)

    monkeypatch.setattr(NativeEngine, "forward_backward", with_put)
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(tmp_path / "run"), *QUIET, *SHORT]
    assert main(words) == 0, "without run.deterministic it runs"
    words[3] += " again"
    assert main([*words, *MODE]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if "error:" in line]
    assert "run.deterministic = true: on cpu torch" in line
    assert "has no deterministic implementation of put_" in line
