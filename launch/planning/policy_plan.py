"""`triaxial plan` of a PPO or GRPO recipe: rollouts, scores and updates of an iteration, on the best layouts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes
from gpt.model.config import ModelConfig
from launch.config.recipe import find_recipe, read_toml
from launch.config.run_config import RunConfig, from_dict, with_defaults
from launch.planning.plan_report import aligned, seconds_text
from launch.post_training.checks import loop_settings, value_source
from launch.post_training.price import packed_bytes, rollout_bytes, weights_bytes
from parallel.layout.split import balanced_split
from parallel.planner.choice.candidates import Candidate, PlanRequest, candidates
from parallel.planner.choice.footprint import footprint
from parallel.planner.choice.ranking import GIB, USABLE, layout_words
from parallel.planner.step_time.job import Job
from parallel.planner.step_time.rollouts import forward_s, sampling_s
from parallel.planner.step_time.step import step_time

SIMULATED = 30  # of the layouts that are fastest without bubbles
SCHEDULES = ("1f1b", "interleaved_1f1b")


@dataclass(frozen=True)
class OtherModel:
    """A model besides the policy. The value model trains; `source` says where its size comes from."""

    name: str
    model: ModelConfig
    source: str
    trains: bool = False


@dataclass(frozen=True)
class PolicyTime:
    """Seconds of an iteration on a layout, and bytes of the fullest rank."""

    layout: Candidate
    sampling: float
    scoring: float
    training: float
    peak_bytes: float

    @property
    def seconds(self) -> float:
        return self.sampling + self.scoring + self.training


def policy_plan(config: RunConfig, request: PlanRequest, gpus: int, *, keep: int) -> tuple[list[PolicyTime], list[str]]:
    """The layouts with the fastest iterations, and lines about the models. ConfigError: no layout fits."""
    others = other_models(config)
    fitting = [each for each in candidates(request, gpus)[0] if _fits(config, request, each, others)]
    if not fitting:
        raise ConfigError(
            f"no layout of {gpus:,} GPUs holds the policy, its reference, rewards and value model in "
            f"{USABLE * request.cluster.gpu.memory_bytes / GIB:.1f} GiB with whole minibatches. Use more GPUs"
        )
    quick = sorted(fitting, key=lambda each: iteration(config, request, each, others, simulate=False).seconds)
    found = [iteration(config, request, each, others) for each in quick[:SIMULATED]]
    lines = [f"{m.name}: {m.model.parameters:,} parameters, {m.source}" for m in others]
    return sorted(found, key=lambda each: each.seconds)[:keep], lines


def other_models(config: RunConfig) -> tuple[OtherModel, ...]:
    """The reference, the rewards that are models, and PPO's value model."""
    found = [OtherModel("reference", config.model, "as the policy")]
    loop = loop_settings(config)
    for source in (*loop.rewards, *loop.gold):
        if source.run is not None:
            found.append(OtherModel(f"reward {source.name}", *_model_of(source.run, config)))
    if config.objective.kind == "ppo":
        found.append(OtherModel("value model", *_model_of(value_source(config), config), trains=True))
    return tuple(found)


def iteration(
    config: RunConfig, request: PlanRequest, each: Candidate, others: Sequence[OtherModel], *, simulate: bool = True
) -> PolicyTime:
    """Predict an iteration: all responses have their full length, so it is an upper bound."""
    loop, cluster, stack = loop_settings(config), request.cluster, request.stack
    job, episodes = each.job, config.batch.global_batch_tokens // config.data.seq_len
    response = min(loop.max_response_tokens, config.data.seq_len - 1)
    rows = min(loop.rollout_rows, episodes // job.data)
    writing = sampling_s(job, cluster, stack, rows=rows, prompt=config.data.seq_len - response, response=response)
    sampling = math.ceil(episodes / job.data / rows) * writing
    scoring = forward_s(job, cluster, stack)  # of the policy
    minibatch = min(loop.minibatch_episodes, episodes)
    updates = loop.inner_epochs * episodes // minibatch
    batches = minibatch // (job.data * job.micro_batch_size)
    more = 1 + (getattr(loop, "ptx_per_episode", 0) if getattr(loop, "ptx", ()) else 0)
    policy = replace(job, micro_batches=batches * more)
    training = updates * step_time(policy, cluster, stack, simulate=simulate).seconds
    for other in others:
        own = _job_of(other.model, job)
        scoring += forward_s(own, cluster, stack)
        if other.trains:
            update = replace(own, micro_batches=batches)
            training += updates * step_time(update, cluster, stack, simulate=simulate).seconds
    return PolicyTime(each, sampling, scoring, training, _peak(config, request, each, others))


def policy_lines(found: Sequence[PolicyTime], config: RunConfig, price: float | None) -> list[str]:
    """The table of the terminal."""
    rows = [["", "iteration", "sampling", "scoring", "training", "run"]]
    rows[0] += [*(["cost"] if price else []), "memory", "layout"]
    for number, each in enumerate(found, 1):
        hours = run_hours(each, config)
        cost = [f"{price * hours * each.layout.job.world_size:,.0f}"] if price else []
        parts = [seconds_text(s) for s in (each.seconds, each.sampling, each.scoring, each.training)]
        words = layout_words(each.layout.parallel, each.layout.micro_batch_size)
        time = f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} d"
        rows.append([f"{number}", *parts, time, *cost, f"{each.peak_bytes / GIB:.1f} GiB", words])
    note = "Responses count with their full length. Decoding is not validated against a published run."
    return ["", *aligned(rows, left=1), "", note]


def policy_json(found: Sequence[PolicyTime], config: RunConfig) -> list[dict[str, Any]]:
    return [
        {
            "layout": layout_words(each.layout.parallel, each.layout.micro_batch_size),
            "parallel": asdict(each.layout.parallel),
            "micro_batch_size": each.layout.micro_batch_size,
            "iteration_s": each.seconds,
            "sampling_s": each.sampling,
            "scoring_s": each.scoring,
            "training_s": each.training,
            "peak_bytes": round(each.peak_bytes),
            "run_hours": run_hours(each, config),
        }
        for each in found
    ]


def run_hours(each: PolicyTime, config: RunConfig) -> float:
    """Hours of all iterations."""
    return math.ceil(config.train.total_tokens / config.batch.global_batch_tokens) * each.seconds / 3600


def _model_of(run: Path, config: RunConfig) -> tuple[ModelConfig, str]:
    """A run's model: by its config.json, else by the shipped recipe of its name, else as large as the policy."""
    try:
        return from_dict(with_defaults(decode_json(read_bytes(run / "config.json")))).model, f"as in {run}"
    except (OSError, ValueError, ConfigError):
        pass
    try:
        model = ModelConfig(**read_toml(find_recipe(run.name))["model"])
        return model, f"as in the recipe {run.name}, since {run} is not there"
    except (ConfigError, KeyError, TypeError):
        return config.model, f"as the policy, since {run} is not there"


def _fits(config: RunConfig, request: PlanRequest, each: Candidate, others: Sequence[OtherModel]) -> bool:
    """Whether a layout can train in minibatches, splits every model, and holds them all."""
    loop, job = loop_settings(config), each.job
    episodes = config.batch.global_batch_tokens // config.data.seq_len
    minibatch = min(loop.minibatch_episodes, episodes)
    rows = job.data * job.micro_batch_size
    if minibatch % rows or episodes % job.data or job.schedule not in SCHEDULES:
        return False
    if job.pipeline > 1 and (minibatch // rows) % job.pipeline:
        return False
    for other in others:
        if other.model.n_heads % job.tensor or other.model.kv_heads % job.tensor:
            return False
        if len(job.split) > other.model.n_layers:
            return False
    return _peak(config, request, each, others) <= USABLE * request.cluster.gpu.memory_bytes


def _peak(config: RunConfig, request: PlanRequest, each: Candidate, others: Sequence[OtherModel]) -> float:
    """Bytes of the fullest rank: the policy's update or its rollouts, with all other models."""
    job = replace(each.job, micro_batches=max(1, each.job.micro_batches))
    own = replace(config, parallel=each.parallel)
    parts = footprint(job)
    static = parts.weights + parts.gathered + parts.gradients + parts.optimizer
    kept = 0.0
    for other in others:
        split = _split_of(other.model, len(job.split))
        size = weights_bytes(other.model, replace(each.layout, split=split), own)
        kept += size * 4 if other.trains else size
    machine = request.cluster.machine
    packed = packed_bytes(own, each.layout) if machine is not None and machine.on_cpu else 0
    return kept + max(parts.peak, static + packed + rollout_bytes(own, each.layout))


def _job_of(model: ModelConfig, job: Job) -> Job:
    return replace(job, model=model, split=_split_of(model, len(job.split)))


def _split_of(model: ModelConfig, stages: int) -> tuple[int, ...]:
    if model.n_layers % stages == 0:
        return (model.n_layers // stages,) * stages
    return balanced_split(model, stages=stages, seq_len=model.n_ctx, recompute=False)
