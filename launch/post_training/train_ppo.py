"""Run one rank of a PPO run, from its recipe to its exit status. launch/training/train_rank.py joins the ranks."""

from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gpt.health.watchers import Heartbeat
from gpt.post_training.ppo.loop import PPOLoop
from gpt.post_training.ppo.rollout_files import discard_rollouts
from gpt.telemetry.time_ledger import TimeLedger
from launch.config.run_config import RunConfig
from launch.post_training.checks import PPOParts, check_ppo
from launch.post_training.models import build_models, starting_state
from launch.post_training.price import dry_run_notes as dry_run_notes
from launch.processes.environment import ClusterEnvironment
from launch.processes.rank_process import StopSignals
from launch.reports.policy_health import diagnosis_lines
from launch.training import train_rank
from launch.training.build import build_run, open_metrics, total_peak_flops_per_s
from launch.training.checkpoint_space import check_space
from launch.training.summary import describe, mark_ending, prepare_run_directory
from launch.training.train_rank import Prepared, report_end
from parallel.agreement import wait_for_all


@dataclass(frozen=True)
class PreparedPPO:
    """Everything that a rank opens and checks before it joins the others."""

    base: Prepared
    parts: PPOParts

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def reached(self) -> int:
        return self.base.reached


def prepare(
    config: RunConfig,
    environment: ClusterEnvironment,
    ledger: TimeLedger,
    *,
    resume: bool | None,
    stop: StopSignals | None = None,
) -> PreparedPPO:
    """Open and check everything that needs no other rank, so that ranks do not wait for one that finds a mistake."""
    base = train_rank.prepare(config, environment, ledger, resume=resume, stop=stop)
    return PreparedPPO(base, check_ppo(base))


def train_joined(prepared: PreparedPPO, heartbeat: Heartbeat) -> int:
    """Train together with the other ranks, from the checkpoint to the end. Return the exit status."""
    base, parts = prepared.base, prepared.parts
    config, ledger, layout = base.config, base.ledger, base.layout
    start, events = train_rank.find_run_start(base)
    resumed = start.checkpoint is not None
    state = starting_state(parts, start)
    with ledger.span("start_up/building"):
        models = build_models(base, parts, start, state)
    start = start.without_checkpoint()
    first_step, policy = state.step, models.policy
    if policy.is_main and parts.config.rollouts == "sample":
        discard_rollouts(parts.setup.rollouts, after=first_step + 1)  # of weights that are to be computed again
    with ledger.span("start_up/measuring"):
        peak = total_peak_flops_per_s(config, base.environment, base.device)
    run = build_run(config, base.saved_state, peak_flops_per_s=peak)
    events += [*start.events, *check_space(run, policy, step=first_step)]
    with ledger, open_metrics(config, run, start) if policy.is_main else nullcontext() as metrics:
        if metrics is not None:
            prepare_run_directory(config)
            for line in describe(config, run, layout, device=base.device, data=base.data):
                metrics.message(line)
            for kind, line in events:
                metrics.event(kind, step=first_step, text=line)
        loop = PPOLoop(
            run,
            parts.setup,
            models,
            state=state,
            saved_step=start.step if resumed else None,
            sampler=base.sampler,
            metrics=metrics,
            ledger=ledger,
            heartbeat=heartbeat,
            stop=base.stop,
        )
        ended = loop.train()
        base.stop.end()
        status = mark_ending(ended)
        ledger.shut_down()
        weights = policy.weights_digest() if config.run.deterministic else None
        if metrics is not None:
            report_end(base, run, loop.outcome(ended), metrics, first_step=first_step, weights=weights)
            for line in diagnosis_lines(config.run.directory):
                metrics.message(line)
    with suppress(RuntimeError):  # all is saved, so a peer that is gone changes nothing
        wait_for_all()
        dist.destroy_process_group()
    return status
