"""The settings from which an engine is built."""

from dataclasses import dataclass

from gpt.adapters.config import AdapterConfig
from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class EngineSettings:
    """Everything but the objective that decides what an engine builds."""

    model: ModelConfig
    parallel: ParallelConfig
    layout: Layout
    optimizer: OptimizerConfig | None  # None: the engine trains nothing
    micro_batch_size: int
    seed: int
    residual_dropout: float = 0.0  # in batches with row keys
    adapter: AdapterConfig | None = None

    @property
    def saves_frozen(self) -> bool:
        """Whether checkpoints hold the frozen parameters too."""
        return self.adapter is None or self.adapter.save_base


def sharding_signature(settings: EngineSettings) -> dict[str, object]:
    """The settings that, with the model, decide which elements of each tensor a rank holds; as JSON values.

    The native engine is not named: it was the only one when the first checkpoints were written.
    """
    layout, engine = settings.layout, settings.parallel.engine
    return {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "data": layout.data,
        "data_shard": layout.data_shard,
        "split": list(layout.split),
        "v_shaped": layout.v_shaped,
        "zero_stage": settings.parallel.zero_stage,
        **({} if engine == "native" else {"engine": engine}),
        **({"base": settings.parallel.precision} if settings.adapter is not None else {}),  # the dtype of its weights
    }
