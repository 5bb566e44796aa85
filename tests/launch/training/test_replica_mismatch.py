"""Silent corruption: the run finds a flipped bit of a replica, names the rank, and resumes from an earlier save."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

EVERY = 5  # steps between comparisons
STEP_TOKENS = 576
EXPONENT = [23, 30]  # its bits in fp32
LAYOUTS = {  # everything has three replicas; only norms and some biases have three; some tensors have two
    "data 3": (3, ["--parallel.data", "3", "--parallel.zero_stage", "0"]),
    "tensor 3": (3, ["--parallel.tensor", "3"]),
    "tensor 2 x data 2": (4, ["--parallel.tensor", "2", "--parallel.data", "2", "--parallel.zero_stage", "0"]),
}
USUAL = ["data 3", "tensor 2 x data 2"]
SIZE = {"tensor 2 x data 2": ["--model.n_heads", "2"]}


@pytest.fixture(scope="session")
def flip_trials():
    """tests/launch/flip_trials.py as a module."""
    spec = importlib.util.spec_from_file_location("flip_trials", Path(__file__).parents[1] / "flip_trials.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_of(tiny_corpus, trials, *, bits, layouts=tuple(LAYOUTS)):
    plan = []
    for seed, name in enumerate(layouts):
        nproc, words = LAYOUTS[name]
        shape = ["--model.d_model", "48", "--model.n_heads", "3", "--data.seq_len", "48"]
        shape += ["--model.n_ctx", "48"]
        shape += ["--batch.global_batch_tokens", str(STEP_TOKENS)]
        words = [str(tiny_corpus.recipe), "--run.directory", "unused", *shape, *SIZE.get(name, []), *words]
        words += ["--train.total_tokens", str(STEP_TOKENS * EVERY), "--health.replica_check_every_steps", str(EVERY)]
        words += ["--checkpoint.every_tokens", str(STEP_TOKENS * 1000)]  # no save, which would also check
        plan.append({"name": name, "nproc": nproc, "words": words, "trials": trials, "bits": bits, "seed": seed})
    return plan


def assert_found(found):
    """Check that each flip is found within EVERY steps, under its name, and on its rank if there are more than two
    replicas."""
    for trial in found:
        assert trial["found"] is not None, trial
        assert trial["flipped_at"] < trial["found_at"] <= EVERY, trial
        assert trial["flipped"].split(".", 1)[1] in trial["found"], trial
        assert odd_ranks(trial) in ({trial["rank"]}, None), trial


def odd_ranks(trial):
    """Return the ranks that the message blames; None if it says that it cannot know, and names this rank."""
    if "no majority shows which is right" in trial["found"]:
        assert f"rank {trial['rank']} (" in trial["found"], trial
        return None
    return {int(rank) for part in re.findall(r" on (rank .*?) differs", trial["found"]) for rank in
            re.findall(r"rank (\d+) ", part)}  # fmt: skip


def test_flipped_bits_are_found_and_the_rank_is_named(tiny_corpus, flip_trials, tmp_path):
    found = flip_trials.launch(tmp_path, plan_of(tiny_corpus, 4, bits=EXPONENT, layouts=USUAL), timeout_s=240)
    for name in USUAL:
        assert len(found[name]) == 4
        assert_found(found[name])
    assert all(odd_ranks(trial) for trial in found["data 3"])


QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--run.deterministic", "true"]


def words_of(recipe, run, *more):
    """Ten steps, compared after every third step, and before the saves after the fourth and the eighth."""
    words = [recipe, "--run.directory", run, *QUIET, "--train.total_tokens", 5120, "--train.validation_tokens", 64]
    return [*map(str, [*words, "--health.replica_check_every_steps", 3, *more])]


def test_a_run_with_a_flipped_bit_ends_and_resumes_from_a_checkpoint_that_was_compared(
    tiny_corpus, watched_ranks, tmp_path
):
    run = tmp_path / "run"
    words = words_of(tiny_corpus.recipe, run, "--parallel.tensor", 2)
    undisturbed = words_of(tiny_corpus.recipe, tmp_path / "undisturbed", "--parallel.tensor", 2)
    flip = {"rank": 1, "from_step": 7, "flip": ["model", 3]}
    plan = [
        {"name": "flipped", "nproc": 2, "words": words, "ail": flip},
        {"name": "again", "nproc": 2, "words": words},
        {"name": "undisturbed", "nproc": 2, "words": undisturbed},
    ]
    (tmp_path / "disk").mkdir()
    tier = ["--checkpoint.fast_directory", str(tmp_path / "disk"), "--checkpoint.fast_every_tokens", "512"]
    tier += ["--checkpoint.in_background", "false"]  # a background save could take the turn of the local tier
    words = [*words_of(tiny_corpus.recipe, tmp_path / "fast", "--parallel.tensor", 2), *tier]
    plan += [
        {"name": "flipped fast", "nproc": 2, "words": words, "ail": flip},
        {"name": "again fast", "nproc": 2, "words": words},
    ]
    runs = watched_ranks.launch(tmp_path, plan)
    assert runs["flipped"]["status"] == [1, 1], runs["flipped"]["written"]
    assert len(runs["flipped"]["ranks"][0]) == 8, "the flip is found before the next save"
    (told,) = [line for line in runs["flipped"]["written"][0].splitlines() if "error:" in line]
    assert "step 8: the replicas of model." in told
    assert "on rank 0 (" in told
    assert "and rank 1 (" in told
    assert told_of(run) == [("replica_mismatch", 8), ("warning", 4), ("resumed", 4), ("ended", 10)]
    assert told_of(tmp_path / "fast") == [("replica_mismatch", 7), ("warning", 6), ("resumed", 6), ("ended", 10)], (
        "a save every step"
    )
    assert runs["again"]["status"] == runs["again fast"]["status"] == [0, 0]
    assert_same_weights(run, tmp_path / "fast", tmp_path / "undisturbed")


def told_of(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(event["kind"], event["step"]) for event in events if not event["kind"].startswith("checkpoint")]


def assert_same_weights(*runs):
    digests = {json.loads((run / "train_summary.json").read_text())["weights_sha256"] for run in runs}
    assert len(digests) == 1


@pytest.mark.rehearse
def test_the_launcher_restarts_a_run_with_a_flipped_bit(tiny_corpus, tmp_path, monkeypatch, capfd):
    """A bit of a moment with three replicas, in a plain `triaxial train --nproc 3 --max-restarts 1`."""
    from launch.processes.local_launch import launch_local
    from launch.processes.restarts import RestartPolicy

    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}:{Path(__file__).parents[1]}")
    shape = ["--batch.global_batch_tokens", 768, "--train.total_tokens", 7680, "--checkpoint.every_tokens", 3072]
    flip = {"rank": 2, "from_step": 7, "flip": ["exp_avg_sq", 24]}
    for name, fault in (("run", flip), ("undisturbed", {**flip, "rank": 7})):
        more = [*shape, "--parallel.data", 3, "--parallel.zero_stage", 0]
        words = [json.dumps(fault), "train", *words_of(tiny_corpus.recipe, tmp_path / name, *more)]
        assert launch_local(3, words, module="ailing_ranks", restarts=RestartPolicy(1)) == 0
    shown = capfd.readouterr()
    assert "on rank 2 (" in shown.err + shown.out
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    told = [event["kind"] for event in events if not event["kind"].startswith("checkpoint")]
    assert told == ["replica_mismatch", "restart", "resumed", "ended"]
    assert_same_weights(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.rehearse
def test_a_hundred_flipped_exponents_are_found(tiny_corpus, flip_trials, tmp_path):
    found = flip_trials.launch(tmp_path, plan_of(tiny_corpus, 100, bits=EXPONENT), timeout_s=3000)
    for name in LAYOUTS:
        assert len(found[name]) == 100
        assert_found(found[name])
    assert all(odd_ranks(trial) for name in ("data 3", "tensor 3") for trial in found[name])


@pytest.mark.rehearse
def test_none_of_a_hundred_flipped_mantissa_bits_is_overlooked(tiny_corpus, flip_trials, tmp_path, capsys):
    """A flip that is not found has vanished in rounding: SHA-256 shows that all replicas are equal again."""
    any_bit = flip_trials.launch(tmp_path, plan_of(tiny_corpus, 100, bits=[0, 22], layouts=["data 3"]), timeout_s=3000)
    lost = [trial for trial in any_bit["data 3"] if trial["found"] is None]
    with capsys.disabled():
        print(f"\nmantissa bits found within {EVERY} steps: {100 - len(lost)} of 100; not:")
        print(*[json.dumps(trial) for trial in lost], sep="\n")
    assert all(trial["digests"] == 1 for trial in lost)
    assert all(trial["digests"] > 1 for trial in any_bit["data 3"] if trial not in lost)
