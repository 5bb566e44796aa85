"""Which blocks each pipeline stage holds: balanced by cost, or as a recipe gives them; never builds a stage."""

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig


def balanced_split(model: ModelConfig, *, stages: int, seq_len: int, recompute: bool) -> tuple[int, ...]:
    """Blocks of each stage such that the costliest stage costs least; ConfigError when a stage would be empty.

    The cost is floating-point operations a token, forward and backward, as `ModelConfig.train_flops_per_token` counts
    them. The ends are layers too: the head costs its product with the padded vocabulary; the embedding a look-up, next
    to nothing, so that it only decides between equals. Blocks that `recompute` runs once more cost a third more. A
    stage with an end may hold no block: a head often costs several.
    """
    _check_enough(model, stages)
    block = (6.0 * model.block_parameters + 12.0 * model.d_model * seq_len) * (4 / 3 if recompute else 1)
    blocks = [0 if stage in (0, stages - 1) else 1 for stage in range(stages)]
    cost = [float(n) * block for n in blocks]
    cost[0] += 6.0 * model.d_model
    cost[-1] += 6.0 * model.padded_vocab_size * model.d_model
    for _ in range(model.n_layers - sum(blocks)):
        # Blocks cost the same, so to give each to the cheapest stage is optimal. Of equals the latest: an early stage
        # keeps the activations of more micro-batches.
        cheapest = min(range(stages), key=lambda stage: (cost[stage], -stage))
        blocks[cheapest] += 1
        cost[cheapest] += block
    return tuple(blocks)


def check_split(split: tuple[int, ...], model: ModelConfig, *, stages: int) -> tuple[int, ...]:
    """`split` itself, when it is one number of blocks for each stage and they add up to the model's."""
    text = f"parallel.split = {list(split)}"
    if len(split) != stages:
        raise ConfigError(
            f"{text} names {len(split)} stages, but parallel.pipeline x parallel.stages_per_rank gives {stages}; give "
            f"one number of blocks for each stage, or leave it out, to balance them by cost"
        )
    if sum(split) != model.n_layers:
        raise ConfigError(
            f"{text} adds up to {sum(split)} blocks, but model.n_layers = {model.n_layers}; change either"
        )
    for stage, blocks in enumerate(split):
        if blocks < 0 or (blocks == 0 and stage not in (0, stages - 1)):
            raise ConfigError(
                f"{text}: stage {stage} of {stages} would hold nothing; each needs at least 1 block, but for the first "
                f"and the last, which may hold 0 beside the embedding or the head"
            )
    return split


def _check_enough(model: ModelConfig, stages: int) -> None:
    if model.n_layers < stages - 2:
        raise ConfigError(
            f"model.n_layers = {model.n_layers} blocks do not fill {stages} pipeline stages (parallel.pipeline x "
            f"parallel.stages_per_rank): each but the first and the last needs one; use at most {model.n_layers + 2} "
            f"stages or at least {stages - 2} layers"
        )
