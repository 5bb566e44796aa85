"""Distribute the blocks of a model over pipeline stages: balanced by cost, or as the recipe gives them."""

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig


def balanced_split(model: ModelConfig, *, stages: int, seq_len: int, recompute: bool) -> tuple[int, ...]:
    """Return the blocks of each stage that minimise the cost of the costliest stage.

    The cost is floating-point operations per token, forward and backward, as in `ModelConfig.train_flops_per_token`.
    The two ends count as layers. The head costs its product with the padded vocabulary. The embedding is a look-up and
    costs almost nothing, so it only breaks ties. Blocks with `recompute` run forward twice and cost a third more. The
    first and the last stage may hold no block, since a head often costs as much as several.
    ConfigError: a stage would be empty.
    """
    _check_enough(model, stages)
    block = (6.0 * model.block_parameters + 12.0 * model.d_model * seq_len) * (4 / 3 if recompute else 1)
    blocks = [0 if stage in (0, stages - 1) else 1 for stage in range(stages)]
    cost = [float(n) * block for n in blocks]
    cost[0] += 6.0 * model.d_model
    cost[-1] += 6.0 * model.padded_vocab_size * model.d_model
    for _ in range(model.n_layers - sum(blocks)):
        # All blocks cost the same, so giving each to the cheapest stage is optimal. Ties go to the latest stage: early
        # stages keep the activations of more micro-batches.
        cheapest = min(range(stages), key=lambda stage: (cost[stage], -stage))
        blocks[cheapest] += 1
        cost[cheapest] += block
    return tuple(blocks)


def check_split(split: tuple[int, ...], model: ModelConfig, *, stages: int) -> tuple[int, ...]:
    """Return `split` if it has one number for each stage and they add up to the blocks of the model.

    ConfigError otherwise.
    """
    text = f"parallel.split = {list(split)}"
    if len(split) != stages:
        raise ConfigError(
            f"{text} is invalid: it names {len(split)} stages, but parallel.pipeline x parallel.stages_per_rank gives "
            f"{stages}. Give one number of blocks for each stage, or remove it to balance the stages by cost"
        )
    if sum(split) != model.n_layers:
        raise ConfigError(
            f"{text} is invalid: it adds up to {sum(split)} blocks, but model.n_layers = {model.n_layers}. "
            f"Change either"
        )
    for stage, blocks in enumerate(split):
        if blocks < 0 or (blocks == 0 and stage not in (0, stages - 1)):
            raise ConfigError(
                f"{text} is invalid: stage {stage} of {stages} would hold nothing. Each stage needs at least 1 block; "
                f"only the first (embedding) and the last (head) may have 0"
            )
    return split


def _check_enough(model: ModelConfig, stages: int) -> None:
    if model.n_layers < stages - 2:
        raise ConfigError(
            f"model.n_layers = {model.n_layers} is invalid: does not fill {stages} pipeline stages (parallel.pipeline "
            f"x parallel.stages_per_rank), because every stage except the first and the last needs a block. Use "
            f"at most {model.n_layers + 2} stages or at least {stages - 2} layers"
        )
