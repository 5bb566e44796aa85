"""Mistakes of a PPO recipe end with one line, before any process group exists."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.post_training.ppo.state import PPOState
from gpt.telemetry.time_ledger import TimeLedger
from gpt.token_files.files import TokenFileWriter
from launch.config.run_config import read_run_config
from launch.post_training.checks import check_ppo
from launch.post_training.models import EngineMaker, starting_state
from launch.post_training.train_ppo import prepare
from launch.processes.environment import ClusterEnvironment
from launch.training.resume import RunStart, fresh_start


def prepared(instruct: Any, run: Path, *words: str) -> Any:
    sys.path.insert(0, str(instruct.folder))  # where the reward functions are
    try:
        config = read_run_config(str(instruct.recipe), ["--run.directory", str(run), *words])
        return prepare(config, ClusterEnvironment(), TimeLedger(None), resume=None)
    finally:
        sys.path.remove(str(instruct.folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sampling", "window"], "data.sampling = 'window' is invalid with objective.kind = 'ppo'"),
        (
            ["--objective.max_response_tokens", "32"],
            "max_response_tokens = 32 is invalid: must be below data.seq_len = 32",
        ),
        (["--objective.minibatch_episodes", "5"], "objective.minibatch_episodes = 5 is invalid: must divide the 16"),
        (["--objective.minibatch_episodes", "1"], "must be a multiple of batch.micro_batch_size x .* = 2. Use 2"),
        (["--data.validation", "[{ path = '{folder}/prompts' }]"], "data.validation is invalid with objective.kind"),
        (["--objective.offload", '["value"]'], r"objective.offload = \['value'\] with device 'cpu' is invalid"),
        (["--objective.rewards", "[]"], "objective.rewards is empty"),
        (["--train.residual_dropout", "0.1"], "train.residual_dropout is invalid with objective.kind = 'ppo'"),
        (["--objective.rewards", "[{ run = '{folder}/base' }]"], "it is a run of objective.kind = 'next_token'"),
        (
            ["--objective.rewards", "[{ run = '{folder}/nowhere' }]"],
            r"rewards: run = '.*nowhere' is inv.*nowhere: no such folder",
        ),
        (["--objective.gold", "[{ run = '{folder}/nowhere' }]"], r"objective.gold: run = '.*nowhere: no such folder"),
        (["--objective.rewards", "[{ function = 'ppo_rewards:missing' }]"], "cannot be imported: AttributeError"),
        (["--objective.gold", "[{ function = 'ppo_rewards:short' }]"], "two have the name 'short'"),
    ],
)
def test_a_wrong_recipe_is_one_line(instruct: Any, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(instruct, tmp_path / "run", *(word.replace("{folder}", str(instruct.folder)) for word in words))


def test_a_policy_needs_a_start(instruct: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "ppo.toml"
    text = instruct.recipe.read_text().replace(f'start_from = "{instruct.folder}/base"\n', "")
    recipe.write_text(text)
    config = read_run_config(str(recipe), ["--run.directory", str(tmp_path / "run")])
    with pytest.raises(ConfigError, match=r"run.start_from is missing"):
        prepare(config, ClusterEnvironment(), TimeLedger(None), resume=None)


def test_prompts_without_room_are_counted(instruct: Any, tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "prompts", vocab_size=512) as writer:
        for length in (3, 31, 32, 40):
            writer.add_document(np.full(length, 7))
    words = ["--data.train", f"[{{ path = '{tmp_path}/prompts' }}]"]
    with pytest.raises(
        ConfigError,
        match=r"0 of its 4 .* and 2 leave no room .* = 32.*smaller conversations.max_prompt",
    ):
        prepared(instruct, tmp_path / "run", *words)


def test_a_reward_model_with_another_tokenizer_is_refused(instruct: Any, tmp_path: Path) -> None:
    parts = prepared(instruct, tmp_path / "run")
    assert parts.parts.plans.keys() == {"reference", "value", "rewards/rm"}
    assert parts.parts.setup.episodes == 16
    assert starting_state(parts.parts, fresh_start(parts.base.config)).beta == 0.02
    parts.base.saved_state["tokenizer"] = "another"
    with pytest.raises(ConfigError, match=r"rm' is invalid: it was trained with another tokenizer than data.tokenizer"):
        check_ppo(parts.base)
    words = ["--objective.rewards", "[{ function = 'ppo_rewards:short' }]", "--objective.gold", "[]"]
    parts = prepared(instruct, tmp_path / "run", *words, "--objective.value_from", str(instruct.folder / "rm"))
    parts.base.saved_state["tokenizer"] = "another"
    with pytest.raises(ConfigError, match=r"objective.value_from = '.*rm' is invalid: it was trained with another tok"):
        check_ppo(parts.base)


def test_rollouts_of_another_run_in_the_same_folder_have_another_digest(instruct: Any, tmp_path: Path) -> None:
    """By the seed and the settings of the sampler, and not by those that only the updates read."""

    def digest(*words: str) -> str:
        found: str = prepared(instruct, tmp_path / "run", *words).parts.setup.sampled_by
        return found

    first = digest()
    assert digest("--optimizer.learning_rate", "1e-4", "--objective.minibatch_episodes", "16") == first
    others = [("--run.seed", "4"), ("--objective.max_response_tokens", "11")]
    for words in others:
        assert digest(*words) != first


def test_a_resumed_run_takes_beta_from_its_recipe_unless_beta_adapts(instruct: Any, tmp_path: Path) -> None:
    checkpoint: Any = "of step 0"
    for words, beta in (["--objective.beta", "0.5"], 0.5), (["--objective.target_kl", "6.0"], 0.1):
        found = prepared(instruct, tmp_path / "run", *words)
        saved = PPOState(fresh_start(found.base.config).state, 0.1, models={})
        assert starting_state(found.parts, RunStart(saved.to_loop(), checkpoint, [])).beta == beta


def test_a_model_that_was_written_again_since_the_start_is_refused(instruct: Any, tmp_path: Path) -> None:
    """A calibrated reward model takes the name of the old one: a resumed run must not score by it."""
    found = prepared(instruct, tmp_path / "run")
    state = starting_state(found.parts, fresh_start(found.base.config))
    mesh: Any = None  # for engines alone
    maker = EngineMaker(found.base, found.parts, mesh, state)
    path = maker.checkpoint("rewards/rm").path
    resumed = PPOState.from_loop(state.to_loop())
    assert resumed == state
    assert EngineMaker(found.base, found.parts, mesh, resumed).checkpoint("rewards/rm").path == path
    resumed.digests["rewards/rm"] = "0" * 64
    with pytest.raises(ConfigError, match=r"is another checkpoint than the one that this run started its model 'rewar"):
        EngineMaker(found.base, found.parts, mesh, resumed).checkpoint("rewards/rm")
