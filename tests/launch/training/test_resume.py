"""Where a run starts: what is refused before ranks join, and what is reported of changed settings.

Runs that resume are in many tests here, such as test_train_ends.py and tests/launch/test_version_before.py.
"""

import shutil

import pytest

from gpt.errors import ConfigError
from gpt.telemetry.time_ledger import TimeLedger
from launch.config.run_config import read_run_config
from launch.processes.environment import ClusterEnvironment
from launch.training.resume import check_no_links, check_run_directory, check_same_run, loop_state
from launch.training.train_rank import prepare, run_rank
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header

ALONE = ClusterEnvironment()


def config_of(tiny_corpus, run, *words):
    quiet = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    return read_run_config(tiny_corpus.recipe, ["--run.directory", str(run), *quiet, *map(str, words)])


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory):
    """The directory of a run of two steps; not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert run_rank(config_of(tiny_corpus, run, "--train.total_tokens", 1024), ALONE, resume=None) == 0
    return run


def saved_and_now(tiny_corpus, trained, *words):
    """The newest checkpoint's state, and that of a run with changed settings in a directory of its own."""
    config = config_of(tiny_corpus, trained.parent / "other", *words)
    (path,) = list_checkpoints(trained / "checkpoints")
    return read_checkpoint_header(path).state, prepare(config, ALONE, TimeLedger(None), resume=None).saved_state


def test_resume_must_fit_what_is_there(tiny_corpus, trained, tmp_path):
    for run, resume, message in (
        (tmp_path / "new", True, "--resume, but .* contains no checkpoint"),
        (trained, False, "--no-resume, but .* contains the checkpoint step-000000002"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_run_directory(config_of(tiny_corpus, run), {}, resume=resume)
    check_run_directory(config_of(tiny_corpus, tmp_path / "new"), {}, resume=None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.d_model", 64], r"saved with another configuration \(model\.d_model"),
        (["--batch.global_batch_tokens", 1024], r"saved with another configuration \(batch\.global_batch_tokens"),
        (["--optimizer.kind", "sgd"], r"another optimizer \(optimizer\.kind: adamw -> sgd\).*run\.start_from = '"),
        (["--optimizer.frozen", '["embed.*"]'], r"optimizer\.frozen: \[\] -> \['embed\.\*'\]"),
        (["--run.seed", 4], "trained on other data than the recipe has now .the seed was 3 and is now 4"),
    ],
)
def test_another_model_batch_optimizer_or_data_is_refused(tiny_corpus, trained, words, message):
    saved, now = saved_and_now(tiny_corpus, trained, *words)
    with pytest.raises(ConfigError, match=message):
        check_same_run(trained, saved, now)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "sft"}, r"another objective \(objective\.kind: ppo -> sft"),
        (
            {"kind": "ppo", "rewards": [{"name": "rm", "run": "a/rm", "weight": 2.0}]},
            r"objective\.rewards: .*run\.start",
        ),
        ({"kind": "ppo", "rewards": [{"name": "rm", "run": "b/rm", "weight": 1.0}], "beta": 0.5}, ""),
    ],
)
def test_another_kind_of_objective_and_other_rewards_are_refused(tiny_corpus, trained, objective, message):
    """A reward model is recognised by the digest of its checkpoint, so its folder may have moved."""
    saved, now = saved_and_now(tiny_corpus, trained)
    before = {"kind": "ppo", "rewards": [{"name": "rm", "run": "a/rm", "weight": 1.0}], "beta": 0.1}
    saved["config"]["objective"], now["config"]["objective"] = before, objective
    if not message:
        assert any("objective.beta: 0.1 -> 0.5" in change for change in check_same_run(trained, saved, now))
        return
    with pytest.raises(ConfigError, match=message):
        check_same_run(trained, saved, now)


def test_other_changes_are_reported(tiny_corpus, trained):
    saved, now = saved_and_now(tiny_corpus, trained, "--optimizer.learning_rate", 1e-3, "--batch.micro_batch_size", 1)
    changes = check_same_run(trained, saved, now)
    assert any("optimizer.learning_rate" in change for change in changes)
    assert any("batch.micro_batch_size" in change for change in changes)


def test_the_loop_continues_where_the_checkpoint_was_saved(tiny_corpus, trained):
    saved, _ = saved_and_now(tiny_corpus, trained)
    skip = ["--data.skip", "[[100, 110]]"]
    state, messages = loop_state(config_of(tiny_corpus, trained, *skip), saved)
    assert (state.step, state.skipped.spans) == (2, ((100, 110),))
    assert messages == ["data.skip: positions 100 to 109 are left out from now on"]
    with pytest.raises(ConfigError, match="the run has read it at step 1"):
        loop_state(config_of(tiny_corpus, trained, "--data.skip", "[[3, 5]]"), saved)


def test_only_the_folder_of_checkpoints_may_be_a_link(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.move(run / "checkpoints", tmp_path / "larger_disk")
    (run / "checkpoints").symlink_to(tmp_path / "larger_disk")
    check_no_links(run)
    (run / "metrics.jsonl").rename(tmp_path / "elsewhere")
    (run / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is a symbolic link"):
        check_no_links(run)
