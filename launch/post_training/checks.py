"""Open and check the parts of a PPO run before the ranks join, so that a mistake ends with one line."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt.data.config import DataConfig
from gpt.data.dataset import TrainingData
from gpt.errors import ConfigError, nearest_divisors
from gpt.model.config import ModelConfig
from gpt.post_training.config import Pool
from gpt.post_training.ppo.config import GRPOConfig, PPOConfig, RewardSource
from gpt.post_training.ppo.models import PPOSetup
from gpt.post_training.ppo.rewards import RewardFunction, load_function
from gpt.token_files.corpus import describe_corpus
from gpt.tokenizer.special_tokens import special_tokens_of
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.corpora import naming_the_maker
from launch.config.run_arguments import find_checkpoint_folder
from launch.config.run_config import RunConfig
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import model_section
from launch.training.train_rank import Prepared
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header
from parallel.checkpoint.manifest import manifest_digest
from parallel.engines.capabilities import capabilities_of
from parallel.layout.config import BatchConfig
from parallel.layout.layout import Layout, resolve_layout


@dataclass(frozen=True)
class ModelPlan:
    """A model of the run besides the policy: where its weights are, its configuration and its layout on the mesh."""

    source: Path
    model: ModelConfig
    layout: Layout
    config: dict[str, Any]  # of the run that made it
    tokenizer: object  # fingerprint of the one that this run read, None if unknown
    digest: str  # SHA-256 of the checkpoint's manifest, which has those of its files
    pool: Pool  # how its head is read, if that is scalar


@dataclass(frozen=True)
class PPOParts:
    """Everything that a rank knows of a PPO run before it joins the others. `plans`: by the names of `state.models`.

    `functions`: the rewards that are Python functions, by name.
    """

    config: PPOConfig
    setup: PPOSetup
    plans: dict[str, ModelPlan]
    functions: dict[str, RewardFunction]


def check_unused(config: RunConfig) -> None:
    """ConfigError if the recipe asks for something that an iteration of PPO does not do."""
    kind = config.objective.kind
    used = {
        "data.validation": (bool(config.data.validation), "`triaxial evaluate` and `triaxial score` read checkpoints"),
        "train.few_shot_every_tokens": (config.train.few_shot_every_tokens is not None, "evaluate checkpoints"),
        "checkpoint.fast_directory": (bool(config.checkpoint.fast_directory), "several models are saved together"),
        "spike.action = 'rewind'": (config.spike.action == "rewind", "the loss of a policy is no measure of faults"),
        "train.z_loss": (config.train.z_loss > 0, "its losses have no such term"),
        "train.residual_dropout": (config.train.residual_dropout > 0, "the ratio would not begin at 1"),
    }
    if not capabilities_of(config.parallel.engine).shares_mesh:
        raise ConfigError(
            f'parallel.engine = "{config.parallel.engine}" is invalid with objective.kind = "{kind}": several '
            f'models share one mesh, which only the native engine is proven to do. Use parallel.engine = "native"'
        )
    for key, (is_used, reason) in used.items():
        if is_used:
            raise ConfigError(f"{key} is invalid with objective.kind = '{kind}': {reason}. Leave it out")
    if config.adapter is not None and (ema := loop_settings(config).ema):
        raise ConfigError(
            f"objective.ema = {ema} is invalid with [adapter]: the averages of an adapter's two matrices do not have "
            f"the average of their products. Use objective.ema = 0"
        )


def check_ppo(base: Prepared) -> PPOParts:
    """Open data and rewards. ConfigError: they do not fit each other, the policy or the layout."""
    config, objective = base.config, loop_settings(base.config)
    episodes = check_batch(config, objective, data=base.layout.data)
    check_unused(config)
    if objective.offload and base.device.type != "cuda":
        raise ConfigError(
            f"objective.offload = {list(objective.offload)} with device '{base.device.type}' is invalid: weights are "
            f"in host memory already. Use objective.offload = []"
        )
    if config.run.start_from is None:
        raise ConfigError(
            f"run.start_from is missing: with objective.kind = '{config.objective.kind}' it names the policy's first "
            f"weights, which are also the reference's. Use the run of a supervised fine-tuning"
        )
    if not objective.rewards and objective.rollouts != "only":
        raise ConfigError("objective.rewards is empty. Name at least one: rewards = [{ run = 'runs/reward' }]")
    plans, rank = plan_models(base), base.environment.rank
    with naming_the_maker():
        ptx = _open_ptx(config, objective)
    tokenizer = load_tokenizer(Path(config.data.tokenizer))
    companions = find_checkpoint_folder(config.run.start_from)[0].parent / HUGGING_FACE
    end_ids = chat_ends(config) or special_tokens_of(companions, Path(config.data.tokenizer), tokenizer).end_ids
    setup = PPOSetup(
        config=objective,
        prompts=base.data,
        ptx=ptx,
        tokenizer=tokenizer,
        end_ids=end_ids,
        rollouts=config.run.directory / "rollouts",
        episodes=episodes,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        group=config.objective if isinstance(config.objective, GRPOConfig) else None,
        trim_to=trim_multiple(config),
        sampled_by=sampler_digest(base, plans["reference"], objective, end_ids),
        writes=rank < base.layout.tensor * base.layout.data and rank % base.layout.tensor == 0,
    )
    functions = {s.name: load_function(s) for s in (*objective.rewards, *objective.gold) if s.function}
    return PPOParts(objective, setup, plans, functions)


def plan_models(base: Prepared) -> dict[str, ModelPlan]:
    """The models besides the policy, by name. ConfigError: one does not fit the layout, the data or the tokenizer."""
    config, objective, world_size = base.config, loop_settings(base.config), base.layout.world_size
    assert config.run.start_from is not None
    plans = {"reference": plan_model(config, config.run.start_from, world_size, key="run.start_from")}
    for name, sources in (("rewards", objective.rewards), ("gold", objective.gold)):
        for source in sources:
            if source.run is not None:
                key = f"objective.{name}: run = '{source.run}'"
                plan = plan_model(config, source.run, world_size, key=key, kind="reward")
                _check_tokenizer(plan, base.saved_state["tokenizer"], key=key)
                plans[reward_key(source)] = plan
    if config.objective.kind == "ppo":
        start = value_source(config)
        key = f"objective.value_from = '{start}'"
        plans["value"] = plan_model(config, start, world_size, key=key)
        _check_tokenizer(plans["value"], base.saved_state["tokenizer"], key=key)
    return plans


def check_batch(config: RunConfig, objective: PPOConfig, *, data: int) -> int:
    """The episodes of an iteration. ConfigError: they do not divide into minibatches and micro-batches."""
    if config.data.sampling != "document":
        raise ConfigError(
            f"data.sampling = '{config.data.sampling}' is invalid with objective.kind = '{config.objective.kind}': "
            f"each document is a prompt. Use data.sampling = 'document'"
        )
    if config.batch.ramp_tokens is not None:
        raise ConfigError(
            f"batch.ramp_tokens is invalid with objective.kind = '{config.objective.kind}': iterations have one size. "
            f"Remove it"
        )
    if objective.max_response_tokens >= config.data.seq_len:
        raise ConfigError(
            f"objective.max_response_tokens = {objective.max_response_tokens} is invalid: must be below data.seq_len "
            f"= {config.data.seq_len}, which holds prompt and response. Use {max(1, config.data.seq_len // 2)}"
        )
    episodes = config.batch.global_batch_tokens // config.data.seq_len
    minibatch = min(objective.minibatch_episodes, episodes)
    if isinstance(config.objective, GRPOConfig) and minibatch % (config.objective.group_size * data):
        raise ConfigError(
            f"objective.minibatch_episodes = {minibatch} is invalid: must be a multiple of objective.group_size x "
            f"data-parallel ranks = {config.objective.group_size * data}, so that each rank has whole groups"
        )
    if episodes % minibatch:
        raise ConfigError(
            f"objective.minibatch_episodes = {minibatch} is invalid: must divide the {episodes} episodes of an "
            f"iteration (batch.global_batch_tokens / data.seq_len). Use {nearest_divisors(episodes, minibatch)}"
        )
    at_once = config.batch.micro_batch_size * data
    if minibatch % at_once:
        raise ConfigError(
            f"objective.minibatch_episodes = {minibatch} is invalid: must be a multiple of batch.micro_batch_size x "
            f"data-parallel ranks = {at_once}. Use {-(-minibatch // at_once) * at_once}"
        )
    return episodes


def loop_settings(config: RunConfig) -> PPOConfig:
    """The settings of the loop of a recipe with phases."""
    assert isinstance(config.objective, (PPOConfig, GRPOConfig))
    return config.objective.loop


def value_source(config: RunConfig) -> Path:
    """The run that the value model starts from."""
    objective, start = loop_settings(config), config.run.start_from
    assert start is not None
    return objective.value_from or next((source.run for source in objective.rewards if source.run is not None), start)


def trim_multiple(config: RunConfig) -> int | None:
    """The multiple to which rows are cut. None where all batches must have one shape: a pipeline, compiled blocks."""
    if config.parallel.pipeline > 1 or config.parallel.compile:
        return None
    return 16 * config.parallel.tensor


def sampler_digest(base: Prepared, start: ModelPlan, objective: PPOConfig, end_ids: tuple[int, ...]) -> str:
    """See PPOSetup.sampled_by."""
    config = base.config
    decides = [start.digest, base.saved_state["data"], base.saved_state["tokenizer"], list(end_ids), config.run.seed]
    decides += [str(config.data.skip), config.data.seq_len, objective.temperature, objective.max_response_tokens]
    decides.append(config.objective.group_size if isinstance(config.objective, GRPOConfig) else 1)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def chat_ends(config: RunConfig) -> tuple[int, ...]:
    """The tokens that end an answer in the chat format of the prompts, as `triaxial prepare` wrote them."""
    found = [(describe_corpus(Path(corpus.path)) or {}).get("chat") or {} for corpus in config.data.train]
    return tuple(dict.fromkeys(int(i) for chat in found for i in chat.get("end_ids", ())))


def reward_key(source: RewardSource) -> str:
    """The name of a reward's model in `PPOState.models`."""
    return f"rewards/{source.name}"


def plan_model(config: RunConfig, source: Path, world_size: int, *, key: str, kind: str | None = None) -> ModelPlan:
    """Read the configuration of a run's newest checkpoint, and lay its model out over the ranks of this run."""
    try:
        directory, path = find_checkpoint_folder(source)
    except ConfigError as error:
        raise ConfigError(f"{key} is invalid: {error}") from None
    found = list_checkpoints(directory)
    if path is None and not found:
        raise ConfigError(f"{key}: {directory} contains no checkpoint")
    header = read_checkpoint_header(path or found[0])
    saved = header.state.get("config")
    if not isinstance(saved, dict):
        raise ConfigError(f"{key}: {path or found[0]} does not record its configuration")
    made_by = saved.get("objective", {}).get("kind", "next_token")
    if kind is not None and made_by != kind:
        raise ConfigError(f"{key} is invalid: it is a run of objective.kind = '{made_by}'. Use one of '{kind}'")
    model = model_section(saved)
    if model.n_ctx < config.data.seq_len:
        raise ConfigError(
            f"{key} is invalid: its model reads {model.n_ctx} tokens, but data.seq_len = {config.data.seq_len}. Use a "
            f"model with a longer context, or data.seq_len = {model.n_ctx}"
        )
    return ModelPlan(
        source,
        model,
        lay_out(config, model, world_size),
        saved,
        header.state.get("tokenizer"),
        manifest_digest(header.manifest),
        pool_of(header.state),
    )


def pool_of(state: dict[str, Any]) -> Pool:
    """How the scalar head of a checkpoint with this state is read. The value model of a PPO run has its own pool."""
    objective = state["config"].get("objective", {})
    pool: Pool = "last"
    if objective.get("kind") == "ppo":
        pool = state["loop"]["phases"].get("value_pool", pool)
    elif objective.get("kind") == "reward":
        pool = objective.get("pool", pool)
    return pool


def lay_out(config: RunConfig, model: ModelConfig, world_size: int) -> Layout:
    """The layout of a model over the ranks of this run, by the micro-batches of an update."""
    objective, parallel = loop_settings(config), config.parallel
    if model.n_layers != config.model.n_layers:
        parallel = replace(parallel, split=None)
    episodes = config.batch.global_batch_tokens // config.data.seq_len
    tokens = min(objective.minibatch_episodes, episodes) * config.data.seq_len
    batch = BatchConfig(micro_batch_size=config.batch.micro_batch_size, global_batch_tokens=tokens)
    return resolve_layout(parallel, batch, model=model, seq_len=config.data.seq_len, world_size=world_size)


def _check_tokenizer(plan: ModelPlan, fingerprint: object, *, key: str) -> None:
    """Refuse a reward or value model that reads other token ids: its numbers would be of another text."""
    if plan.tokenizer not in (None, fingerprint):
        raise ConfigError(
            f"{key} is invalid: it was trained with another tokenizer than data.tokenizer, so it cannot read the "
            f"policy's tokens. Use a model with the policy's tokenizer, or as a reward a function"
        )


def _open_ptx(config: RunConfig, objective: PPOConfig) -> TrainingData | None:
    """The pre-training corpora, in an order of their own."""
    if not objective.ptx:
        return None
    data = DataConfig(
        tokenizer=config.data.tokenizer, train=objective.ptx, seq_len=config.data.seq_len, sampling="window"
    )
    return TrainingData(data, seed=config.run.seed, vocab_size=config.model.vocab_size)
