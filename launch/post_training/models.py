"""Build the engines of a PPO run on one mesh, with the weights that they start or resume from."""

from dataclasses import replace
from pathlib import Path

from gpt.adapters.config import AdapterConfig
from gpt.errors import ConfigError
from gpt.post_training.ppo.config import Placement, RewardSource
from gpt.post_training.ppo.models import PPOModels
from gpt.post_training.ppo.objectives import Value
from gpt.post_training.ppo.rewards import FunctionReward, ResponseReward, ScalarReward
from gpt.post_training.ppo.state import PPOState
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from gpt.training.optimizer import OptimizerConfig
from launch.config.run_config import RunConfig, from_dict
from launch.post_training.checks import ModelPlan, PPOParts, reward_key
from launch.runs.saved_run import find_checkpoint
from launch.training.build import ENDS
from launch.training.resume import RunStart
from launch.training.train_rank import Prepared
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.checkpoint.manifest import manifest_digest
from parallel.engines import choose
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh, build_mesh


def starting_state(parts: PPOParts, start: RunStart) -> PPOState:
    """The state of a new run, or that of the checkpoint to resume from. A beta that is fixed follows the recipe."""
    if start.checkpoint is None:
        pool = parts.plans["value"].pool if "value" in parts.plans else "last"
        return PPOState(start.state, parts.config.beta, models={}, value_pool=pool)
    state = PPOState.from_loop(start.state)
    if parts.config.target_kl is None:
        state.beta = parts.config.beta
    return state


def build_models(base: Prepared, parts: PPOParts, start: RunStart, state: PPOState) -> PPOModels:
    """All engines. Fills `state.models` in a new run. Collective over all ranks.

    ConfigError: weights are missing or do not fit.
    """
    config, objective = base.config, parts.config
    maker = EngineMaker(base, parts, build_mesh(base.layout, base.device), state)
    policy = maker.engine(None, base.objective, optimizer=config.optimizer, adapter=config.adapter)
    reference = maker.frozen("reference", base.objective)
    value = None
    if "value" in parts.plans:
        optimizer = replace(config.optimizer, learning_rate=objective.value_learning_rate, frozen=(), groups=())
        learns = Value(clip=objective.value_clip, pool=state.value_pool)
        value = maker.engine(parts.plans["value"], learns, optimizer=optimizer, placement="value", init=True)
    ema = maker.engine(None, base.objective, placement="ema") if objective.ema else None
    if start.checkpoint is not None:
        if start.weights is not None:  # the base of a checkpoint that holds adapters alone
            policy.checkpoints.shared.load_weights(start.weights)
        policy.checkpoints.shared.load(start.checkpoint)
        if value is not None:
            value.checkpoints.shared.load(saved_with(base, "value", start.step))
        if ema is not None:
            ema.checkpoints.shared.load(saved_with(base, "ema", start.step))
    else:
        first = maker.checkpoint("reference")
        for engine in (policy, *([] if ema is None else [ema])):
            engine.checkpoints.shared.load_weights(first)
        missing = list[str]()
        if value is not None:
            missing = value.checkpoints.shared.load_weights(maker.checkpoint("value"), optional=ENDS[1:])
        start.events.extend(("started_from", f"value model: {name} is initialised from the seed") for name in missing)
        start.events.extend(("started_from", f"{name}: weights of {path}") for name, path in state.models.items())
    rewards = [maker.reward(source) for source in objective.rewards]
    gold = [maker.reward(source) for source in objective.gold]
    return PPOModels(policy, reference, value, ema, rewards, gold)


class EngineMaker:
    """Makes the engines of one run over one mesh. Every rank has one, and all call its methods in the same order."""

    def __init__(self, base: Prepared, parts: PPOParts, mesh: Mesh, state: PPOState) -> None:
        self.base, self.parts, self.mesh, self.state = base, parts, mesh, state

    def engine(
        self,
        plan: ModelPlan | None,
        objective: Objective,
        *,
        optimizer: OptimizerConfig | None = None,
        adapter: AdapterConfig | None = None,
        placement: Placement | None = None,
        init: bool = False,
    ) -> Engine:
        """An engine of a plan's model, or of the policy's. Without an optimizer it never learns."""
        config: RunConfig = self.base.config
        model = config.model if plan is None else plan.model
        layout = self.base.layout if plan is None else plan.layout
        parallel = config.parallel
        if placement in self.parts.config.offload:
            parallel = replace(parallel, offload=True)
        settings = EngineSettings(
            model=model,
            parallel=parallel,
            layout=layout,
            optimizer=optimizer,
            micro_batch_size=config.batch.micro_batch_size,
            seed=config.run.seed,
            adapter=adapter,
        )
        return choose.build_engine(
            settings,
            objective=objective,
            device=self.base.device,
            init_weights=init,
            mesh=replace(self.mesh, layout=layout),
        )

    def frozen(self, name: str, objective: Objective) -> Engine:
        """An engine that never learns, with the weights of `plans[name]`."""
        placement: Placement = "reference" if name == "reference" else "rewards"
        engine = self.engine(self.parts.plans[name], objective, placement=placement)
        engine.checkpoints.shared.load_weights(self.checkpoint(name))
        return engine

    def reward(self, source: RewardSource) -> ResponseReward:
        """The reward of a source: an engine, or a function."""
        if source.run is None:
            return FunctionReward(source.name, self.parts.functions[source.name], self.parts.setup.tokenizer)
        name = reward_key(source)
        objective = from_dict(self.parts.plans[name].config).objective.build(z_loss=0.0)
        return ScalarReward(self.frozen(name, objective))

    def checkpoint(self, name: str) -> Checkpoint:
        """The verified checkpoint of a model, the same one in a resumed run. Collective over all ranks."""
        known = self.state.models.get(name)
        if known is not None:
            if not Path(known).is_dir():
                raise ConfigError(f"{known} is missing: this run started its model '{name}' from it. Restore it")
            checkpoint = verify_checkpoint(Path(known))
            if self.state.digests.get(name) not in (None, manifest_digest(checkpoint.manifest)):
                raise ConfigError(
                    f"{known} is another checkpoint than the one that this run started its model '{name}' from, such "
                    f"as one that was calibrated since. Restore it, or start a new run"
                )
            return checkpoint
        _, checkpoint, _ = find_checkpoint(self.parts.plans[name].source, None)
        self.state.models[name] = str(checkpoint.path.absolute())
        self.state.digests[name] = manifest_digest(checkpoint.manifest)
        return checkpoint


def saved_with(base: Prepared, name: str, step: int) -> Checkpoint:
    """The checkpoint of another model of this run, saved with the policy's of this step. Collective over all ranks."""
    directory = base.config.run.directory / name
    try:
        _, checkpoint, _ = find_checkpoint(directory, step)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The policy's checkpoint of step {step:,} needs it: restore it, or remove that checkpoint to "
            f"resume from an earlier one"
        ) from None
    return checkpoint
