"""The loop of PPO and PPO-ptx (InstructGPT, arXiv 2203.02155): rollout, score, update, average, log, save.

A step is an iteration. Its state on disk is that of the last checkpoint and the files of the rollouts. A run that ends
anywhere resumes from there with the same bits, on the same layout.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from gpt.errors import ConfigError
from gpt.health.watchers import NEVER_STOP, UNWATCHED, Heartbeat, StopRequest
from gpt.post_training.ppo.measures import iteration_values, sample_lines
from gpt.post_training.ppo.models import PPOModels, PPOSetup, any_rank
from gpt.post_training.ppo.sampling import RolloutSource
from gpt.post_training.ppo.saving import PPOSaver
from gpt.post_training.ppo.scoring import Experience, score
from gpt.post_training.ppo.state import PPOState
from gpt.post_training.ppo.updates import Updates, update
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.phases import activity
from gpt.training.recovery import Recovery
from gpt.training.run import End, Metrics, Outcome, Run
from gpt.training.samples import Sampler, sample_records
from gpt.training.schedule import learning_rate


class PPOLoop:
    """One PPO run in this process. `metrics` is None except on the main rank; all else is equal on every rank.

    `saved_step`: the step of the checkpoint that the run resumes from. `sampler` writes the texts of
    `train.sample_prompts`.
    """

    def __init__(
        self,
        run: Run,
        setup: PPOSetup,
        models: PPOModels,
        *,
        state: PPOState,
        saved_step: int | None = None,
        sampler: Sampler | None = None,
        metrics: Metrics | None,
        ledger: TimeLedger,
        heartbeat: Heartbeat = UNWATCHED,
        stop: StopRequest = NEVER_STOP,
    ) -> None:
        self.run, self.setup, self.models, self.state = run, setup, models, state
        self.metrics, self.ledger, self.heartbeat, self.stop = metrics, ledger, heartbeat, stop
        self.rollouts = RolloutSource(setup, models.policy)
        self.saver = PPOSaver(run, models, ledger=ledger, event=self.event)
        self.checks = [
            Recovery(
                run, engine, self.saver.saver, event=self.event, metrics=metrics, ledger=ledger, heartbeat=heartbeat
            )
            for engine in (models.policy, models.value)
            if engine is not None
        ]
        self.started_at = self.saved_at = time.monotonic()
        self.saved_step, self.sampler, self.trained_tokens, self.warned = saved_step, sampler, 0, False

    def train(self) -> End:
        """Train to the end, or until `stop` of any rank asks to save and stop. Every rank must call it.

        ConfigError: the run has ended, and no episode had a reward.
        """
        run, state = self.run, self.state
        self.ledger.resume(step=state.step, tokens=run.batch.tokens_seen(state.step))
        ended: End | None = "total_tokens" if state.step >= run.steps else None
        while ended is None:
            ended = self.iterate()
        self.heartbeat.beat("end", state.step)
        if ended == "total_tokens" and state.nan_rewards == state.step * self.setup.episodes:
            raise ConfigError(
                f"none of the run's {state.nan_rewards:,} episodes has a finite reward, so nothing was learnt. Check "
                f"objective.rewards, and start a new run"
            )
        return ended

    def iterate(self) -> End | None:
        """One iteration. Returns why the run ends, if it ends here."""
        setup, models, state, started_at = self.setup, self.models, self.state, time.perf_counter()
        step, config = state.step + 1, setup.config
        if config.rollouts != "replay":
            version = 0 if config.rollouts == "only" else state.step
            with self.phase("sampling", step, counted_as="rollouts"):
                done = self.rollouts.sample(
                    step, state.loop.skipped, version=version, stop=self.wants_stop, beat=self.beat("sampling", step)
                )
            if not done:  # the weights are those of the start of the iteration: its rollouts resume from their files
                return self.end(self.asked() or "signal")
        if config.rollouts == "only":
            return self.finish(step)
        episodes = self.rollouts.read(step).trimmed(setup.trim_to)
        with self.phase("scoring", step):
            experience = score(episodes, setup, models, beta=state.beta, beat=self.beat("scoring", step))
        with self.phase("training", step):
            updates = update(
                experience,
                setup,
                models,
                step=step,
                lr=self.lr(step, self.run.peak_learning_rate),
                value_lr=self.lr(step, config.value_learning_rate),
                beat=self.beat("training", step),
            )
            if models.ema is not None and updates.policy:
                models.ema.checkpoints.shared.move_weights(models.policy.checkpoints.shared, share=1.0 - config.ema)
        self.stop.step_done()  # before the main rank alone writes
        self.report(step, experience, updates, elapsed_s=time.perf_counter() - started_at)
        self.check_updates(step, updates)
        return self.finish(step)

    def report(self, step: int, experience: Experience, updates: Updates, *, elapsed_s: float) -> None:
        """Log the iteration and adapt beta. All ranks call it; the main rank has the metrics."""
        setup, state = self.setup, self.state
        beta = state.beta if setup.group is None else setup.group.beta
        values = iteration_values(experience, updates, setup, self.models.policy, step=step, beta=beta)
        unscored = int(values["ppo/nan_rewards"])
        state.nan_rewards += unscored
        if updates.policy:  # the KL of a policy that does not learn yet says nothing about beta
            state.adapt_beta(setup.config, kl=values["ppo/kl"], episodes=setup.episodes - unscored)
        if self.metrics is None:
            return
        values |= {
            "learning_rate": self.lr(step, self.run.peak_learning_rate),
            "tokens_seen": self.run.batch.tokens_seen(step),
            "step_s": elapsed_s,
            "ppo/episodes_per_s": setup.episodes / elapsed_s,
        }
        kind = "ppo" if setup.group is None else "grpo"
        self.metrics.log(step, {key.replace("ppo/", f"{kind}/"): value for key, value in values.items()})
        if self.sampler is None:
            self.metrics.append("samples.jsonl", sample_lines(experience, setup, step=step))
        low = setup.config.missing_end_reward
        if low is not None and values.get("ppo/ended_reward", low) < low and not self.warned:
            self.warned = True
            self.event(
                "warning",
                f"iteration {step:,}: responses with an end token have the mean reward "
                f"{values['ppo/ended_reward']:.3g}, below objective.missing_end_reward = {low:g}: the policy learns to "
                f"leave the end out. Calibrate the reward model (triaxial score --demonstrations FILE --calibrate), or "
                f"lower missing_end_reward",
            )
        if unscored:
            self.event(
                "warning",
                f"iteration {step:,}: {unscored:,} of {setup.episodes:,} episodes have a reward "
                f"that is not finite; nothing is learnt from them",
            )

    def finish(self, step: int) -> End | None:
        """Count the iteration, and save if it is due or the run ends."""
        run, state = self.run, self.state
        state.loop.step = step
        self.trained_tokens += run.batch.step_tokens(step - 1)
        self.ledger.step_done(step=step, tokens=run.batch.tokens_seen(step))
        self.rollouts.discard(step)
        every = run.replica_check_every_steps
        if every and step % every == 0:
            self.check_replicas()
        if self.sampler is not None and (run.due(run.config.sample_every_tokens, step) or step == run.steps):
            self.write_samples(self.sampler)
        ended: End | None = "total_tokens" if step == run.steps else self.asked()
        every_s = run.checkpoint.every_s if run.checkpoint.every_tokens is None else 0.0
        by_clock = any_rank(self.models.policy, bool(every_s) and self.has_passed(every_s, since=self.saved_at))
        if ended is not None:
            return self.end(ended)
        if run.due(run.checkpoint.every_tokens, step) or by_clock:
            self.save(must_succeed=False)
        return None

    def end(self, ended: End) -> End:
        self.save(must_succeed=True)
        return ended

    def save(self, *, must_succeed: bool) -> None:
        """Save the run, unless this step is saved already or nothing is trained."""
        if self.saved_step == self.state.step or self.setup.config.rollouts == "only":
            return
        self.heartbeat.beat("saving", self.state.step)
        if self.run.replica_check_every_steps:
            self.check_replicas()
        self.saved_at = time.monotonic()
        if self.saver.save(self.state, must_succeed=must_succeed):
            self.saved_step = self.state.step

    def write_samples(self, sampler: Sampler) -> None:
        """Have the policy write texts after the same prompts each time, on all ranks, and the main rank store them."""
        step = self.state.step
        with self.phase("sampling", step):
            texts = sampler.write(self.models.policy, step=step)
        if self.metrics is not None:
            self.metrics.append("samples.jsonl", sample_records(step=step, prompts=sampler.prompts, texts=texts))

    def check_replicas(self) -> None:
        """End the run, on all ranks, if copies of a weight or moment of policy or value model differ between ranks."""
        for check in self.checks:
            check.check_replicas(self.state.loop)

    def check_updates(self, step: int, updates: Updates) -> None:
        """Count updates whose loss or gradient was not finite; end the run after too many in a row."""
        loop, limit = self.state.loop, self.run.faults.max_skipped_steps
        for result in (*updates.policy, *updates.value):
            loop.skipped_in_a_row = loop.skipped_in_a_row + 1 if result.skipped else 0
            if result.skipped:
                loop.skipped_steps += 1
                found = (
                    f"iteration {step:,}: the loss is {result.loss.mean} and the gradient norm {result.gradient_norm}"
                )
                self.event("step_skipped", f"{found}: nothing was updated, on any rank")
                if loop.skipped_in_a_row > limit:
                    raise ConfigError(
                        f"{found}, as in {loop.skipped_in_a_row} updates in a row (faults.max_skipped_steps = {limit})."
                        f" Earlier checkpoints are good. Lower optimizer.learning_rate or objective.value_learning_rate"
                    )

    def outcome(self, ended: End) -> Outcome:
        """How the run ended. Tokens per second count the padding of episodes."""
        return Outcome(
            state=self.state.loop,
            tokens_seen=self.run.batch.tokens_seen(self.state.step),
            ended=ended,
            validation={},
            tokens_per_s=self.trained_tokens / max(time.monotonic() - self.started_at, 1e-9),
            checkpoint=self.saver.newest,
        )

    def lr(self, step: int, peak: float) -> float:
        return learning_rate(self.run.schedule, peak, self.run.batch.tokens_seen(step))

    def phase(self, name: str, step: int, *, counted_as: str = "") -> AbstractContextManager[None]:
        return activity(name, step, self.heartbeat, self.ledger, counted_as=counted_as or name)

    def beat(self, name: str, step: int) -> Callable[[], None]:
        return lambda: self.heartbeat.beat(name, step)

    def asked(self) -> End | None:
        """The reason why a rank wants the run to end here; None without one. Every rank must call it."""
        stop_after_s = self.run.config.stop_after_s
        late = stop_after_s is not None and self.has_passed(stop_after_s, since=self.started_at)
        asked: tuple[tuple[End, bool], ...] = (
            ("interrupt", self.stop.interrupted),
            ("signal", self.stop()),
            ("stop_after_s", late),
        )
        raised = self.models.policy.all_gather_objects([end for end, here in asked if here])
        everyone = {end for of_rank in raised for end in of_rank}
        return next((end for end, _ in asked if end in everyone), None)

    def wants_stop(self) -> bool:
        return self.stop() or self.stop.interrupted

    def has_passed(self, seconds: float, *, since: float) -> bool:
        """Whether this time has passed, by the main rank's clock: other clocks may differ."""
        return self.models.policy.is_main and time.monotonic() - since >= seconds

    def event(self, kind: EventKind, text: str, **fields: object) -> None:
        """Report and record an event, on the main rank."""
        if self.metrics is not None:
            self.metrics.event(kind, step=self.state.step, text=text, **fields)
