"""The memory of a PPO run besides the policy's, for `triaxial train --dry-run`, which measures an update of the policy.

Bytes are computed from the models' sizes: of the rank that holds most, to a few percent.
"""

from dataclasses import dataclass

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from launch.config.run_config import RunConfig
from launch.planning.dry_run import human_bytes
from launch.post_training.checks import loop_settings, plan_model, value_source
from parallel.layout.layout import Layout

FP32 = 4
TRAINED = 4 * FP32  # weight, gradient and AdamW's two moments


@dataclass(frozen=True)
class Holding:
    """What a model keeps on a rank, all the time or, where it is `offload`ed, in host memory."""

    name: str
    size_bytes: int
    offloaded: bool = False

    def __str__(self) -> str:
        return f"{self.name} {human_bytes(self.size_bytes)}{' (host memory)' if self.offloaded else ''}"


def dry_run_notes(config: RunConfig, layout: Layout) -> list[str]:
    """Lines on the models besides the policy and on rollouts."""
    loop = loop_settings(config)
    held = [Holding("reference", weights_bytes(config.model, layout, config), "reference" in loop.offload)]
    if loop.ema:
        held.append(Holding("average", weights_bytes(config.model, layout, config), "ema" in loop.offload))
    lines = []
    for source in (*loop.rewards, *loop.gold):
        if source.run is not None:
            try:
                plan = plan_model(config, source.run, layout.world_size, key=f"run = '{source.run}'", kind="reward")
            except ConfigError as error:
                lines.append(f"not counted: the reward '{source.name}' ({error})")
                continue
            size = weights_bytes(plan.model, plan.layout, config)
            held.append(Holding(f"reward '{source.name}'", size, "rewards" in loop.offload))
    if config.objective.kind == "ppo":
        try:
            plan = plan_model(config, value_source(config), layout.world_size, key="objective.value_from")
            size = weights_bytes(plan.model, plan.layout, config) * TRAINED // FP32
            held.append(Holding("value model with its optimizer", size, "value" in loop.offload))
        except ConfigError as error:
            lines.append(f"not counted: the value model ({error})")
    total = sum(each.size_bytes for each in held if not each.offloaded)
    rollouts = rollout_bytes(config, layout)
    return [
        "",
        f"besides the policy, a rank keeps: {'; '.join(map(str, held))}. On the device: {human_bytes(total)}",
        f"rollouts: {human_bytes(rollouts)} of keys and values on a rank for {loop.rollout_rows} sequences at a time, "
        f"and the policy's gathered weights; nothing of an update is held at that time",
        *lines,
    ]


def weights_bytes(model: ModelConfig, layout: Layout, config: RunConfig) -> int:
    """The fp32 shards of a model's weights on the rank that holds most."""
    stage_share = max(layout.split) / model.n_layers
    ends = model.parameters - model.n_layers * model.block_parameters
    whole = model.n_layers * model.block_parameters * stage_share + ends / min(layout.stages, 2)
    shards = layout.data_shard if config.parallel.zero_stage >= 1 else 1
    return int(whole * FP32 / layout.tensor / shards)


def packed_bytes(config: RunConfig, layout: Layout) -> int:
    """The packed copy of a stage's blocks and of the head, which rollouts on a CPU read; see packed_stage.py.

    An upper bound: the head is on the last stage alone.
    """
    if layout.tensor > 1:
        return 0
    model, element = config.model, FP32 if config.parallel.precision == "fp32" else 2
    blocks = max(layout.split) * (layout.stages // layout.pipeline)
    return element * (blocks * model.block_parameters + model.padded_vocab_size * model.d_model)


def rollout_bytes(config: RunConfig, layout: Layout) -> int:
    """Keys and values of the sequences that a rank writes at the same time, with the room of gpt's rollouts."""
    loop, model = loop_settings(config), config.model
    positions = config.data.seq_len + config.data.seq_len // 2
    width = max(1, model.kv_heads // layout.tensor) * model.d_head
    element = FP32 if config.parallel.precision == "fp32" else 2
    layers = max(layout.split) * (layout.stages // layout.pipeline)
    return 2 * loop.rollout_rows * positions * width * layers * element
