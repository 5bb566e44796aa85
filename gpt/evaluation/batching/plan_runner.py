"""Run the passes of a forward plan through a model, with the cache that they share."""

import torch
from torch import Tensor

from gpt.evaluation.batching.forward_plan import ForwardPlan, PlannedPass
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel

# Tokens of a packed row. Longer rows give faster products, but attention grows with their square.
MAX_ROW_TOKENS = 512


class PlanRunner:
    """Runs passes in the order of the plan, since a pass may continue what an earlier one cached."""

    def __init__(self, model: InferenceModel, plan: ForwardPlan, *, extra_capacity: int = 0) -> None:
        """`extra_capacity`: cache positions that the caller fills after a pass."""
        self.model = model
        self.plan = plan
        length = plan.cache_length
        self.cache: dict[str, KeyValueCache] = model.make_cache(length + extra_capacity) if length else {}

    def inputs(self, planned: PlannedPass) -> ForwardInputs:
        """Return the model's inputs for a pass. Rewinds the cache to the position where the pass continues."""
        device = self.model.device
        tokens = torch.from_numpy(planned.tokens(self.plan.sequences)).to(device)  # (b, t)
        positions = torch.from_numpy(planned.positions()).to(device)
        mask = torch.from_numpy(planned.mask()).unsqueeze(1).to(device) if planned.needs_mask else None  # (b, 1, t, s)
        if not planned.uses_cache:
            return ForwardInputs(tokens, positions, mask)
        self.rewind(planned.cached_tokens)
        return ForwardInputs(tokens, positions, mask, self.cache)

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` positions of the cache."""
        for layer in self.cache.values():
            layer.rewind(length)

    @torch.inference_mode()
    def next_logits(self, planned: PlannedPass, indices: Tensor) -> Tensor:
        """Run one pass; see `InferenceModel.next_logits`."""
        return self.model.next_logits(self.inputs(planned), indices=indices)

    @torch.inference_mode()
    def log_probs(self, planned: PlannedPass, indices: list[int], targets: list[int]) -> tuple[Tensor, Tensor]:
        """Run one pass; see `InferenceModel.log_probs`."""
        return self.model.log_probs(
            self.inputs(planned),
            indices=torch.tensor(indices, dtype=torch.int64, device=self.model.device),
            targets=torch.tensor(targets, dtype=torch.int64, device=self.model.device),
        )
