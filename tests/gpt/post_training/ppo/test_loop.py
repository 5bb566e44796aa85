"""The loop against its closed form, through restarts, and its updates and measures."""

import errno
import gc
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import MachineFault
from gpt.losses.batch import Batch
from gpt.post_training.ppo.config import GRPOConfig, PPOConfig
from gpt.post_training.ppo.episodes import make_episodes
from gpt.post_training.ppo.measures import correlation, iteration_values
from gpt.post_training.ppo.rewards import ScalarReward
from gpt.post_training.ppo.rollouts import SampledResponse
from gpt.post_training.ppo.sampling import RolloutSource
from gpt.post_training.ppo.scoring import score
from gpt.post_training.ppo.updates import Updates, policy_batch, value_batch

pytestmark = pytest.mark.usefixtures("one_rank")
CRITIC: dict[str, Any] = {"value_learning_rate": 2e-2, "value_clip": 10.0}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_the_policy_ends_at_the_closed_form(bandit: Any, tmp_path: Path, beta: float) -> None:
    """Total variation to pi_ref exp(r / beta) / Z at most 0.05, for each prompt; it starts far from it."""
    config = PPOConfig(beta=beta, minibatch_episodes=64, ema=0.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=30, episodes=256, learning_rate=1e-2)
    optimum = run.optimum(beta)

    def distance() -> float:
        return float((run.policy() - optimum).abs().sum(1).max() / 2)

    assert distance() > (0.15 if beta < 1 else 0.05)
    assert run.loop.train() == "total_tokens"
    assert distance() < 0.05
    for line in run.metrics.lines:
        assert line["ppo/first_ratio_error"] == 0.0
        assert line["ppo/sampler_gap_max"] < 1e-5
    assert run.metrics.lines[-1]["ppo/explained_variance"] > 0.5


@pytest.mark.timeout(300)
def test_several_passes_over_a_batch_do_not_diverge(bandit: Any, tmp_path: Path) -> None:
    """Clipping holds each iteration near its sampler, so four passes end at the closed form too."""
    config = PPOConfig(beta=0.5, minibatch_episodes=64, inner_epochs=4, ema=0.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=12, episodes=256, learning_rate=5e-3)
    run.loop.train()
    assert float((run.policy() - run.optimum(0.5)).abs().sum(1).max() / 2) < 0.05
    assert all(line["ppo/first_ratio_error"] == 0.0 for line in run.metrics.lines)


@pytest.mark.timeout(300)
def test_groups_learn_without_a_value_model(bandit: Any, tmp_path: Path) -> None:
    """GRPO: with a weak penalty the policy moves to the best arm of each prompt; all of a group answer one prompt."""
    config = GRPOConfig(group_size=8, minibatch_episodes=64, beta=0.01)
    run = bandit.make(tmp_path, config, iterations=20, episodes=256, learning_rate=1e-2)
    before = (run.policy() * bandit.REWARDS).sum(1)
    run.loop.train()
    after, best = (run.policy() * bandit.REWARDS).sum(1), bandit.REWARDS.max(1).values
    assert (after > before + 0.5 * (best - before)).all()
    for line in run.metrics.lines:
        assert line["grpo/first_ratio_error"] == 0.0
        assert "grpo/value_loss" not in line
    prompts = run.loop.rollouts.read_prompts(8, 16, run.loop.state.loop.skipped)
    assert prompts == [prompts[0]] * 8 + [prompts[8]] * 8


def test_models_that_wait_in_host_memory_give_the_same_bits(bandit: Any, tmp_path: Path) -> None:
    """Reference, value model with its optimizer, moving average, and the value model as a reward."""
    ends = []
    for name in ("kept", "offloaded"):
        (tmp_path / name).mkdir()
        config = PPOConfig(minibatch_episodes=8, ema=0.9, **CRITIC)
        sizes = {"iterations": 2, "episodes": 16, "learning_rate": 1e-2}
        run = bandit.make(tmp_path / name, config, offload=name == "offloaded", **sizes)
        run.loop.models = replace(run.loop.models, rewards=[ScalarReward(run.loop.models.value)])
        run.loop.train()
        models = run.loop.models
        weights = [model.weights_digest() for model in (models.policy, models.reference, models.value, models.ema)]
        lines = [{**line, "step_s": 0.0, "ppo/episodes_per_s": 0.0} for line in run.metrics.lines]
        ends.append((weights, lines))
    assert ends[0] == ends[1]
    assert len(set(ends[0][0])) == 4, "every model has moved, but the reference"


def test_rollouts_that_a_disk_damages_are_sampled_again_by_a_restart(bandit: Any, tmp_path: Path) -> None:
    """Status 1 says that a restart may succeed; it finds the damage before it counts the part as there."""
    config = PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC)

    def start() -> Any:
        return bandit.make(tmp_path, config, iterations=1, episodes=16, learning_rate=1e-3)

    run = start()
    skipped = run.loop.state.loop.skipped
    how = {"version": 0, "stop": lambda: False, "beat": lambda: None}
    assert run.loop.rollouts.sample(1, skipped, **how)
    whole = run.loop.rollouts.read(1)
    (part,) = (tmp_path / "rollouts").rglob("*.safetensors")
    for damage in (part.read_bytes()[:-1] + b"\x07", b""):
        part.write_bytes(damage)
        with pytest.raises(MachineFault, match="is damaged: its bytes differ from its checksum"):
            run.loop.rollouts.read(1)
        again = start().loop.rollouts
        assert again.sample(1, skipped, **how)
        assert torch.equal(again.read(1).log_probs, whole.log_probs)
        assert torch.equal(again.read(1).tokens, whole.tokens)


def test_a_disk_that_is_full_while_rollouts_are_written_can_be_restarted(
    bandit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=1, episodes=16, learning_rate=1e-3)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineFault, match=r"could not be written: .*No space left"):
        run.loop.train()


def test_iterations_leave_no_tensors_descriptors_threads_or_files_behind(bandit: Any, tmp_path: Path) -> None:
    """Without the collector, tensors that objects in cycles hold would add up too."""
    config = PPOConfig(minibatch_episodes=4, ema=0.0, keep_rollouts=2, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=1000, episodes=8, learning_rate=1e-3)

    def used(iterations: int) -> list[int]:
        for _ in range(iterations):
            assert run.loop.iterate() is None
            if run.loop.state.step % 5 == 0:
                run.loop.save(must_succeed=True)
        tensors = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
        files = sum(path.is_file() for path in tmp_path.rglob("*"))
        return [tensors, len(os.listdir("/proc/self/fd")), threading.active_count(), files]

    gc.collect()
    gc.disable()
    try:
        used(10)  # in which everything starts
        assert used(10) == used(10), "tensors, descriptors, threads, files: before and after ten iterations"
    finally:
        gc.enable()


def _recorded(token_values: Any, masks: list[torch.Tensor]) -> Any:
    """`Engine.token_values` that keeps the loss masks of its batches."""

    def recorded(batch: Batch, **settings: Any) -> torch.Tensor:
        assert batch.loss_mask is not None
        masks.append(batch.loss_mask)
        found: torch.Tensor = token_values(batch, **settings)
        return found

    return recorded


def test_scoring_asks_each_model_once(bandit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine gathers its weights for each call. Heartbeats come before each micro-batch of all minibatches."""
    config = PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=1, episodes=16, learning_rate=1e-3)
    setup, models, calls = run.loop.setup, run.loop.models, list[torch.Tensor]()
    source = RolloutSource(setup, models.policy)
    assert source.sample(1, run.loop.state.loop.skipped, version=0, stop=lambda: False, beat=lambda: None)
    for engine in (models.policy, models.reference, models.value):
        monkeypatch.setattr(engine, "token_values", _recorded(engine.token_values, calls))
    beats = list[int]()
    score(source.read(1), setup, models, beta=0.1, beat=lambda: beats.append(len(calls)))
    assert [len(mask) for mask in calls] == [16] * 3
    rows = models.policy.settings.micro_batch_size
    assert [beats.count(call) for call in (1, 2, 3)] == [16 // rows] * 3


def test_what_does_not_count_changes_no_update(bandit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither prompts nor padding nor episodes without a reward reach a loss: garbage there changes nothing."""
    run = bandit.make(
        tmp_path,
        PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC),
        iterations=1,
        episodes=8,
        learning_rate=1e-3,
        reward=bandit.Holes(4),
    )
    loop = run.loop
    source = RolloutSource(loop.setup, loop.models.policy)
    assert source.sample(1, loop.state.loop.skipped, version=0, stop=lambda: False, beat=lambda: None)
    masks, policy = list[torch.Tensor](), loop.models.policy
    monkeypatch.setattr(policy, "token_values", _recorded(policy.token_values, masks))
    scored = score(source.read(1), loop.setup, loop.models, beta=0.1, beat=lambda: None)
    assert torch.equal(masks[0], scored.mask), "scored on the same tokens as updated: the first ratio is exactly 1"
    for make_batch in (policy_batch, value_batch):
        batch = make_batch(scored, slice(0, 8))
        assert batch.loss_mask is not None
        assert batch.loss_mask.sum() == 6
        assert torch.equal(batch.loss_mask, scored.mask)
    for tensor in (scored.advantages, scored.returns, scored.old_values, scored.old_log_probs):
        assert not tensor[~scored.mask].any()
        assert tensor.isfinite().all()
    assert abs(float(scored.advantages[scored.mask].mean())) < 1e-6
    assert float(scored.advantages[scored.mask].std()) == pytest.approx(1.0, abs=1e-4)


def test_padding_that_equals_the_end_token_is_no_end_token(bandit: Any, tmp_path: Path) -> None:
    """TRL PR 5303: the end token has id 0 here, as all padding has. The true end counts, and no padding does."""
    config = PPOConfig(minibatch_episodes=4, ema=0.0, missing_end_reward=-1.0, **CRITIC)
    run = bandit.make(tmp_path, config, iterations=1, episodes=4, learning_rate=1e-3)
    models = run.loop.models
    models = replace(models, rewards=[ScalarReward(models.value)])
    prompts, responses = [[1], [0], [1, 0], [2]], [[3, 0], [0], [0], [4]]  # the last one was cut, and padding follows
    sampled = [SampledResponse(tokens, [-0.5] * len(tokens), tokens[-1] == 0) for tokens in responses]
    episodes = make_episodes(0, prompts, sampled, seq_len=4, version=0)
    assert episodes.responses() == responses
    assert episodes.mask.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]

    padding = torch.arange(4) >= episodes.total_tokens[:, None]
    other = replace(episodes, tokens=episodes.tokens.masked_fill(padding, 5))
    found, expected = (score(one, run.loop.setup, models, beta=0.1, beat=lambda: None) for one in (episodes, other))
    assert found.rewards[3] == -1.0
    assert torch.equal(found.mask, episodes.mask)
    for name in ("rewards", "log_probs", "reference_log_probs", "old_values", "advantages", "returns"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    values = models.value.token_values(found.episodes.batch())
    ends = values.gather(1, (episodes.total_tokens - 1)[:, None])[:, 0]
    assert torch.equal(found.rewards[:3], ends[:3].double()), "the score is read at the true end"


@pytest.mark.timeout(300)
def test_replayed_rollouts_are_learned_from_relative_to_the_policy_that_wrote_them(bandit: Any, tmp_path: Path) -> None:
    """Also if both policies have made the same number of steps: the steps do not say that they are the same."""
    folders = tmp_path / "wrote", tmp_path / "reads"
    for folder in folders:
        folder.mkdir()
    sizes = {"iterations": 3, "episodes": 64}
    shared: dict[str, Any] = {"minibatch_episodes": 64, "ema": 0.0, **CRITIC}
    bandit.make(folders[0], PPOConfig(keep_rollouts=0, **shared), learning_rate=3e-2, **sizes).loop.train()
    config = PPOConfig(rollouts="replay", replay_from=folders[0], **shared)
    run = bandit.make(folders[1], config, learning_rate=1e-5, **sizes)
    run.loop.train()
    first, *_, last = run.metrics.lines
    assert first["ppo/replayed_ratio_error"] < 1e-5, "the same weights"
    assert last["ppo/replayed_ratio_error"] > 0.05
    assert "ppo/first_ratio_error" not in last, "it would be a fault to the doctor"
    assert last["ppo/sampler_gap"] > 0.05


@pytest.mark.timeout(300)
def test_beta_stays_while_only_the_critic_learns(bandit: Any, tmp_path: Path) -> None:
    config = PPOConfig(
        minibatch_episodes=64, ema=0.0, target_kl=1.0, beta_horizon=64, critic_warmup_iterations=2, **CRITIC
    )
    run = bandit.make(tmp_path, config, iterations=4, episodes=64, learning_rate=1e-3)
    run.loop.train()
    first, second, third, fourth = (line["ppo/beta"] for line in run.metrics.lines)
    assert first == second == third == 0.02, "no update has moved the policy yet"
    assert fourth == pytest.approx(0.8 * 0.02)


def test_explained_variance_does_not_count_a_constant_error(bandit: Any, tmp_path: Path) -> None:
    run = bandit.make(
        tmp_path, PPOConfig(minibatch_episodes=8, ema=0.0, **CRITIC), iterations=1, episodes=8, learning_rate=1e-3
    )
    loop = run.loop
    source = RolloutSource(loop.setup, loop.models.policy)
    assert source.sample(1, loop.state.loop.skipped, version=0, stop=lambda: False, beat=lambda: None)
    scored = score(source.read(1), loop.setup, loop.models, beta=0.0, beat=lambda: None)

    def explained(values: torch.Tensor) -> float:
        found = iteration_values(
            replace(scored, old_values=values), Updates(), loop.setup, loop.models.policy, step=1, beta=0.0
        )
        number: float = found["ppo/explained_variance"]
        return number

    assert explained(scored.returns + 3.0) == pytest.approx(1.0, abs=1e-5)
    assert explained(torch.full_like(scored.returns, 7.0)) == pytest.approx(0.0, abs=1e-5)


def test_the_correlation_of_reward_and_length() -> None:
    rewards, lengths = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 5.0, 6.0])
    sums = {
        "reward": 7.0,
        "counted_length": 14.0,
        "reward_squared": 21.0,
        "length_squared": 70.0,
        "reward_times_length": 37.0,
    }
    expected = float(torch.corrcoef(torch.stack((rewards, lengths)))[0, 1])
    assert correlation(sums, 3.0) == pytest.approx(expected)
