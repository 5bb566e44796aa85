"""Everything that decides what an engine builds."""

from dataclasses import dataclass

from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class EngineSettings:
    """All that decides what a native engine builds."""

    model: ModelConfig
    parallel: ParallelConfig
    layout: Layout
    optimizer: OptimizerConfig
    micro_batch_size: int
    seed: int


def holding_layout(settings: EngineSettings) -> dict[str, object]:
    """What decides which elements of which tensors each rank holds, but for the model; as JSON has it."""
    layout = settings.layout
    return {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "data": layout.data,
        "data_shard": layout.data_shard,
        "split": list(layout.split),
        "v_shaped": layout.v_shaped,
        "zero_stage": settings.parallel.zero_stage,
    }
