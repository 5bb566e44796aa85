"""The rollouts of an iteration: sampled by the policy into files, or replayed from the files of another run.

Every rank reads its episodes back from the files, so that sampling, replay and a restart share one path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt.data.sampling import Samples
from gpt.data.skipped import SkippedData
from gpt.errors import ConfigError, MachineFault
from gpt.inference.model import InferenceModel
from gpt.losses.marks import PADDING
from gpt.post_training.ppo.episodes import Episodes, join, make_episodes
from gpt.post_training.ppo.models import PPOSetup, agree, any_rank
from gpt.post_training.ppo.rollout_files import (
    DamagedRollouts,
    discard_other_parts,
    discard_rollouts,
    has_part,
    read_rollouts,
    step_folder,
    write_part,
)
from gpt.post_training.ppo.rollouts import episode_seed, sample_responses
from gpt.training.engine import Engine


@dataclass(frozen=True)
class RolloutSource:
    """Gives a rank its episodes of an iteration. Every rank has one, and all call it together."""

    setup: PPOSetup
    policy: Engine

    def sample(
        self, step: int, skipped: SkippedData, *, version: int, stop: Callable[[], bool], beat: Callable[[], None]
    ) -> bool:
        """Sample the episodes of iteration `step`, counted from 1, into files. Parts that are there are kept.

        False if `stop` of any rank asked to stop first: between two parts, so that the finished ones are kept.
        `version`: the step of the policy's weights.
        """
        setup, first = self.setup, (step - 1) * self.setup.episodes
        folder = step_folder(setup.rollouts, step)
        error: ConfigError | None = None
        with self.policy.as_model(in_turns=True) as model:
            mine = setup.episodes // model.data_size
            size = int(np.gcd(setup.config.rollout_part, mine))
            if self.policy.is_main:
                discard_other_parts(folder, n=size, version=version, sampled_by=setup.sampled_by)
            any_rank(self.policy, False)  # the others wait for it
            starts = range(first + model.data_rank * mine, first + (model.data_rank + 1) * mine, size)
            for start in starts:
                if any_rank(self.policy, stop()):
                    return False
                if not has_part(folder, start, n=size, version=version, sampled_by=setup.sampled_by):
                    episodes = self._sample_part(model, start, size, skipped, version=version, beat=beat)
                    try:
                        if setup.writes:
                            write_part(
                                folder, episodes, temperature=setup.config.temperature, sampled_by=setup.sampled_by
                            )
                    except ConfigError as found:
                        error = error or found
                model.finish(before_each=beat)
        agree(self.policy, error)  # also waits until all parts are there
        return True

    def _sample_part(
        self,
        model: InferenceModel,
        start: int,
        n: int,
        skipped: SkippedData,
        *,
        version: int,
        beat: Callable[[], None],
    ) -> Episodes:
        """Sample n episodes from number `start` on."""
        setup, prompts = self.setup, self.read_prompts(start, n, skipped)
        responses = sample_responses(
            model,
            prompts,
            seeds=[episode_seed(setup.seed, episode) for episode in range(start, start + n)],
            temperature=setup.config.temperature,
            end_ids=setup.end_ids,
            max_new_tokens=[self.room(prompt) for prompt in prompts],
            rows=setup.config.rollout_rows,
            n_ids=setup.tokenizer.vocab_size,
            before_each=beat,
        )
        return make_episodes(start, prompts, responses, seq_len=setup.seq_len, version=version)

    def read(self, step: int) -> Episodes:
        """This data rank's episodes of an iteration: of each minibatch, a contiguous share."""
        setup, policy = self.setup, self.policy
        source = setup.rollouts if setup.config.replay_from is None else setup.config.replay_from / "rollouts"
        share = setup.minibatch // policy.data_size
        begin = (step - 1) * setup.episodes
        error: ConfigError | None = None
        parts = list[Episodes]()
        try:
            for first in range(begin, begin + setup.episodes, setup.minibatch):
                parts.append(
                    read_rollouts(
                        step_folder(source, step),
                        first + policy.data_rank * share,
                        share,
                        temperature=setup.config.temperature,
                    )
                )
            self._check(parts, step)
            episodes = join(parts)
        except DamagedRollouts as found:  # a restart samples the run's own again; those of another run are given
            error = found if source != setup.rollouts else MachineFault(str(found))
        except ConfigError as found:
            error = found
        agree(policy, error)
        return episodes

    def _check(self, parts: list[Episodes], step: int) -> None:
        """ConfigError if replayed rollouts do not fit the run, or weights that are too old wrote them."""
        setup = self.setup
        for part in parts:
            if part.tokens.size(1) != setup.seq_len:
                raise ConfigError(
                    f"data.seq_len = {setup.seq_len} is invalid: the replayed rollouts have {part.tokens.size(1)}. Use "
                    f"data.seq_len = {part.tokens.size(1)}"
                )
            if int(part.tokens.max()) >= setup.tokenizer.vocab_size:
                raise ConfigError(
                    f"objective.replay_from = '{setup.config.replay_from}' is invalid: its rollouts hold the token "
                    f"{int(part.tokens.max())}, and the tokenizer has {setup.tokenizer.vocab_size}. Use rollouts of "
                    "the same tokenizer"
                )
            staleness = step - 1 - part.version
            if staleness > setup.config.max_staleness:
                raise ConfigError(
                    f"the rollouts of iteration {step:,} were written by weights of step {part.version:,}, "
                    f"{staleness:,} iterations old. Use objective.max_staleness = {staleness}, or newer rollouts"
                )

    def read_prompts(self, first: int, n: int, skipped: SkippedData) -> list[list[int]]:
        """The prompts of n episodes, as token ids: a pure function of the data's order. A group has one prompt."""
        size = 1 if self.setup.group is None else self.setup.group.group_size
        begin, end = first // size, (first + n - 1) // size + 1
        prompts = prompts_of(self.setup.prompts.read(skipped.positions(begin, end - begin)))
        return [prompts[episode // size - begin] for episode in range(first, first + n)]

    def room(self, prompt: list[int]) -> int:
        """The tokens that a response to this prompt may have."""
        return min(self.setup.config.max_response_tokens, self.setup.seq_len - len(prompt))

    def discard(self, step: int) -> None:
        """Delete the files of iterations that are no longer kept, after iteration `step`."""
        keep = self.setup.config.keep_rollouts
        if keep and self.policy.is_main and self.setup.config.rollouts == "sample":
            discard_rollouts(self.setup.rollouts, before=step - keep + 1)


def prompts_of(samples: Samples) -> list[list[int]]:
    """The documents of samples, without padding."""
    assert samples.segment_ids is not None, "prompts are sampled by document"
    lengths = (samples.segment_ids != PADDING).sum(axis=1).tolist()
    return [row[:length].tolist() for row, length in zip(samples.tokens, lengths, strict=True)]
