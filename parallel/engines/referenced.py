"""An engine that trains relative to a frozen reference model, which another engine on the same mesh holds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from gpt.inference.model import InferenceModel
from gpt.losses.batch import Batch
from gpt.training.engine import Checkpoints, Engine, StepResult, Totals
from gpt.training.objective import ReferencedObjective


class ReferencedEngine:
    """See gpt.training.engine.Engine: `engine`, whose batches also get the values that `reference` gives to each token.

    The reference costs one more forward pass for each batch, and the memory of its weights. Checkpoints, digests and
    inference are those of `engine`.
    """

    def __init__(self, engine: Engine, reference: Engine, objective: ReferencedObjective) -> None:
        self.engine, self.reference, self.objective = engine, reference, objective
        self.data_rank, self.data_size, self.is_main = engine.data_rank, engine.data_size, engine.is_main

    @property
    def checkpoints(self) -> Checkpoints:
        return self.engine.checkpoints

    def forward_backward(self, batch: Batch) -> None:
        self.engine.forward_backward(self._completed(batch))

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        return self.engine.optimizer_step(learning_rate, flags=flags, discard=discard)

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        return self.engine.named_gradients()

    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        return self.engine.evaluate(self._completed(batch) for batch in batches)

    def token_values(self, batch: Batch, *, before_each: Callable[[], None] = lambda: None) -> Tensor:
        return self.engine.token_values(batch, before_each=before_each)

    def as_model(self, *, together: bool = False, in_turns: bool = False) -> AbstractContextManager[InferenceModel]:
        return self.engine.as_model(together=together, in_turns=in_turns)

    def weights_digest(self) -> str:
        return self.engine.weights_digest()

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return self.engine.all_gather_objects(values)

    def check_replicas(self) -> str | None:
        return self.engine.check_replicas()

    def _completed(self, batch: Batch) -> Batch:
        values = self.reference.token_values(batch)
        return self.objective.with_reference(batch, values.to(batch.inputs.device))
