"""The run itself names a rank that is slower than its peers, and names no other."""

import json

import pytest

QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--train.validation_tokens", "64"]
QUIET += ["--checkpoint.every_tokens", str(512 * 100_000), "--health.watchdog", "false"]
LAYOUTS = {"data": ["--parallel.data", "2"], "tensor": ["--parallel.tensor", "2"]}


def task(recipe, folder, name, layout, *, steps, every, ail=None):
    words = [str(recipe), "--run.directory", str(folder / name / "run"), *QUIET, *LAYOUTS[layout]]
    words += ["--train.total_tokens", str(512 * steps), "--health.straggler_every_steps", str(every)]
    return {"name": name, "nproc": 2, "words": words, **({"ail": ail} if ail else {})}


def named(folder, name):
    """Return rank, step and text of each event about a slow rank."""
    events = [json.loads(line) for line in (folder / name / "run/events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["kind"] == "straggler_gone"]
    return [(event["rank"], event["step"], event["text"]) for event in events if event["kind"] == "straggler"]


def test_a_rank_that_is_slow_at_reading_is_named(tiny_corpus, watched_ranks, tmp_path):
    """So slow that a busy machine does not hide it."""
    ail = {"rank": 1, "from_step": 3, "reading_s": 0.2}
    watched_ranks.launch(tmp_path, [task(tiny_corpus.recipe, tmp_path, "slow", "data", steps=24, every=1, ail=ail)])
    ((rank, step, text),) = named(tmp_path, "slow")
    assert rank == 1
    assert step > 10, "ten measurements confirm the first one"
    assert text.startswith("rank 1 on ")
    assert "slower than its peer over 10 measured steps, of which reading data" in text


@pytest.mark.rehearse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_thirty_percent_slower_is_named_within_fifty_steps(tiny_corpus, watched_ranks, tmp_path, layout):
    """Ten runs on an idle machine, in which forward and backward of one rank are slowed down."""
    ail = {"rank": 1, "from_step": 20, "slower": 1.4}
    plan = [task(tiny_corpus.recipe, tmp_path, f"slow {i}", layout, steps=70, every=25, ail=ail) for i in range(10)]
    watched_ranks.launch(tmp_path, plan, timeout_s=3000)
    found = [named(tmp_path, run["name"]) for run in plan]
    print(*found, sep="\n")
    assert [[rank for rank, _, _ in ranks] for ranks in found] == [[1]] * 10


@pytest.mark.rehearse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rank_is_named_in_a_thousand_normal_steps(tiny_corpus, watched_ranks, tmp_path, layout):
    watched_ranks.launch(
        tmp_path, [task(tiny_corpus.recipe, tmp_path, "normal", layout, steps=1000, every=25)], timeout_s=3000
    )
    assert named(tmp_path, "normal") == []
