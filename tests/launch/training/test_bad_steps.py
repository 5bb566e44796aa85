"""Steps whose loss or gradient is not finite, broken on one rank in one micro-batch: under data, tensor and pipeline
parallelism all ranks skip the same step and nothing changes; too many in a row end the run."""

import json
import math

import pytest

from parallel.checkpoint.handle import read_checkpoint_header

LAYOUTS = {"data": 2, "tensor": 2, "pipeline": 2}
# The first stage of a pipeline is on rank 0, the last on rank 1; of tensor ranks, rank 0 reports the loss.
LOSS_RANK = {"data": 1, "tensor": 0, "pipeline": 1}


def faults(axis):
    """Three steps broken in three ways, and then three in a row."""
    places = [(2, 1, 0, "nan", "gradient"), (4, 0, 1, "inf", "gradient"), (5, LOSS_RANK[axis], 1, "nan", "loss")]
    places += [(step, 1, 0, "nan", "gradient") for step in (8, 9, 10)]
    return [dict(zip(("step", "rank", "micro_batch", "value", "where"), place, strict=True)) for place in places]


@pytest.fixture(scope="module")
def broken(tiny_corpus, watched_ranks, tmp_path_factory):
    """Two ranks on each axis; the data ranks may skip two steps in a row, the others three."""
    folder = tmp_path_factory.mktemp("broken")
    plan = []
    for axis, size in LAYOUTS.items():
        words = [tiny_corpus.recipe, "--run.directory", folder / axis / "run", f"--parallel.{axis}", size]
        words += ["--metrics.wandb", "disabled", "--checkpoint.every_tokens", 6 * 512, "--train.validation_tokens", 64]
        words += ["--faults.max_skipped_steps", 2 if axis == "data" else 3]
        plan.append({"name": axis, "nproc": 2, "words": [*map(str, words)], "faults": faults(axis), "digests": True})
    return folder, watched_ranks.launch(folder, plan)


@pytest.mark.parametrize("axis", LAYOUTS)
def test_all_ranks_skip_the_broken_steps_alone(broken, axis):
    folder, runs = broken
    ranks = runs[axis]["ranks"]
    assert runs[axis]["failed"] == "", runs[axis]["written"]
    for lines in ranks:
        assert [number for number, line in enumerate(lines, 1) if line["skipped"]] == [2, 4, 5, 8, 9, 10]
        assert [number for number, line in enumerate(lines, 1) if line["unchanged"]] == [2, 4, 5, 8, 9, 10], (
            "bit for bit"
        )
        assert len(lines) == (10 if axis == "data" else 12)
    for first, second in zip(*ranks, strict=True):
        shared = first["digests"].keys() & second["digests"].keys()
        assert len(shared) == (1 if axis == "pipeline" else len(first["digests"])), "a pipeline shares its tied weight"
        assert all(first["digests"][name] == second["digests"][name] for name in shared), "whole weights, on both ranks"
        assert (first["loss"], first["norm"]) == (second["loss"], second["norm"])
        assert first["skipped"] or math.isfinite(float.fromhex(first["loss"]) + float.fromhex(first["norm"]))
    events = [json.loads(line) for line in (folder / axis / "run" / "events.jsonl").read_text().splitlines()]
    skips = {event["step"]: event["text"] for event in events if event["kind"] == "step_skipped"}
    assert skips.keys() == ({2, 4, 5, 8, 9} if axis == "data" else {2, 4, 5, 8, 9, 10})
    assert "step 5: the loss is nan" in skips[5]
    assert "(3 such steps so far)" in skips[5], "one more at each"


@pytest.mark.parametrize("axis", LAYOUTS)
def test_the_statistics_leave_the_broken_steps_out(broken, axis):
    """What a spike is judged by; saved after step 6, of whose steps 2, 4 and 5 were broken, two with a finite loss."""
    folder, runs = broken
    (saved,) = [path for path in (folder / axis / "run" / "checkpoints").iterdir() if path.name == "step-000000006"]
    loop = read_checkpoint_header(saved).state["loop"]
    steps = runs[axis]["ranks"][0][:6]
    assert loop["spikes"]["losses"] == [float.fromhex(line["loss"]) for line in steps if not line["skipped"]]
    assert (loop["spikes"]["seen"], loop["skipped_steps"], loop["skipped_in_a_row"]) == (3, 3, 0)


def test_too_many_in_a_row_end_the_run_on_all_ranks(broken):
    folder, runs = broken
    assert [runs[axis]["status"] for axis in LAYOUTS] == [[2, 2], [0, 0], [0, 0]]
    (told,) = [line for line in runs["data"]["written"][0].splitlines() if "error:" in line]
    assert "step 10: the loss is" in told
    assert "as in 3 steps in a row (faults.max_skipped_steps = 2)" in told
    assert [path.name for path in (folder / "data" / "run" / "checkpoints").iterdir()] == ["step-000000006"]
    for axis in ("tensor", "pipeline"):
        assert json.loads((folder / axis / "run" / "train_summary.json").read_text())["skipped_steps"] == 6
