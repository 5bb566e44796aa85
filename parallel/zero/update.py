"""The optimizer step of DeepSpeed's ZeRO in parts: reduce, look at the gradients, then update or discard them.

DeepSpeed's own step decides on a norm and a loss scale of its own. Here torch's optimizer, which ZeRO calls for each of
its flat tensors, has hooks that scale the gradients, or hide them so that the call changes nothing. ZeRO's step clears
its buffers either way.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.axes.gradients import other_gradient
from parallel.zero.fragments import Fragment, ZeroFragments
from parallel.zero.setup import is_partitioned


class ZeroUpdate:
    """`engine`: a deepspeed.DeepSpeedEngine around `fragments.optimizer`, or None if nothing is trained.

    `tied_copies`: this rank's copy of a weight tied between the first and the last stage. `after_step`: see
    gpt.training.objective.Objective. It is called for one group of parameters at a time, before their weights are sent
    to the other ranks.
    """

    def __init__(
        self,
        engine: Any,
        fragments: ZeroFragments,
        *,
        tied_copies: Sequence[nn.Parameter],
        after_step: Callable[[Sequence[tuple[str, Tensor]]], None],
    ) -> None:
        self._engine, self._fragments, self._after_step = engine, fragments, after_step
        tied = [id(parameter) for parameter in tied_copies if parameter.requires_grad]
        self._tied = [one for one in fragments.trainable if id(one.parameter) in tied]
        counted_elsewhere = [] if 0 in fragments.mesh.stages else tied
        self._counted = [one for one in fragments.trainable if id(one.parameter) not in counted_elsewhere]
        self._factor: float | None = None  # of the update under way; None: hide the gradients
        self._hidden: list[tuple[Tensor, Tensor | None]] = []
        self._reduced = self._updated = False
        partitioned = any(is_partitioned(one.parameter) for one in fragments.all)
        # ZeRO 3 gives the mean over ranks, the others the sum
        self._to_sum = float(fragments.mesh.layout.data) if partitioned else 1.0
        if fragments.optimizer is not None:
            fragments.optimizer.register_step_pre_hook(self._before_update)
            fragments.optimizer.register_step_post_hook(self._after_update)

    def finish_reduction(self) -> None:
        """Reduce what has not been reduced since the last step. Collective over the data ranks; a second call waits
        for the step."""
        if self._reduced:
            return
        self._reduced = True
        zero = self._engine.optimizer
        if hasattr(zero, "finalize_gradient_accumulation_boundary") and self._engine.zero_optimization_stage() >= 2:
            zero.finalize_gradient_accumulation_boundary()
        elif hasattr(zero, "reduce_gradients"):
            zero.set_gradient_accumulation_boundary(True)
            zero.reduce_gradients()
        else:
            self._engine.buffered_allreduce_fallback()
        device = self._fragments.mesh.device
        if device.type == "cuda" and any(one.weight.device != device for one in self._counted):
            torch.cuda.synchronize(device)  # offload copies gradients to host memory while the host goes on
        self._sum_tied_gradients()

    @torch.no_grad()
    def _sum_tied_gradients(self) -> None:
        """Add up the gradients of a weight tied between two stages, in both. After the data ranks have added theirs:
        the order of that sum differs between the stages, and so would the copies."""
        for one in self._tied:
            piece = one.weight  # without elements here, any will do
            if one.size:
                piece = self._gradient_source()(one).reshape(-1).narrow(0, 0, one.size)
            other = other_gradient([self._fragments.whole(one, piece)], self._fragments.mesh)
            if one.size:
                piece += other.flatten().narrow(0, one.start, one.size)

    @torch.no_grad()
    def squared_norm(self) -> Tensor:
        """This rank's part of the squared norm of the summed gradients, float64, 0-d on the device."""
        device = self._fragments.mesh.device
        held = [gradient for _, gradient in self._held_gradients()]
        if not held:
            return torch.zeros((), dtype=torch.float64, device=device)
        norms = torch.stack(torch._foreach_norm(held, 2, dtype=torch.float64))  # type: ignore[attr-defined]
        return norms.square().sum().to(device) * self._to_sum**2

    def gradients(self) -> Iterator[tuple[Fragment, Tensor]]:
        """This rank's part (size,) of each summed gradient. The parts of all data ranks make up the whole.

        A weight tied between two stages comes from the first.
        """
        found = {id(fragment): gradient for fragment, gradient in self._held_gradients()}
        for fragment in self._counted:
            piece = found.get(id(fragment), fragment.weight)  # without elements here, any will do
            yield fragment, piece * self._to_sum

    def apply(self, learning_rate: float, *, factor: float) -> None:
        """Update with the summed gradients times `factor`. Collective over the data ranks."""
        optimizer, fragments = self._fragments.optimizer, self._fragments
        assert optimizer is not None
        fragments.allocate_state()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self._factor, self._updated = factor * self._to_sum, False
        self._step()
        self._factor = None
        if not self._updated:
            raise RuntimeError("DeepSpeed skipped an update: the norm of the summed gradients overflows fp32")
        fragments.steps += 1

    def discard(self) -> None:
        """Forget the gradients since the last step. Collective over the data ranks."""
        self._step()

    def _step(self) -> None:
        self._engine.optimizer.step()
        self._engine.optimizer.zero_grad()
        self._reduced = False

    def _held_gradients(self) -> Iterator[tuple[Fragment, Tensor]]:
        """The fragments with elements here that no other stage counts, each with its reduced gradient (size,)."""
        gradient = self._gradient_source()
        for fragment in self._counted:
            if fragment.size:
                yield fragment, gradient(fragment).reshape(-1).narrow(0, 0, fragment.size)

    def _gradient_source(self) -> Callable[[Fragment], Tensor]:
        zero = self._engine.optimizer
        if hasattr(zero, "fp32_groups_gradient_flat_partition"):  # ZeRO 1 in bf16
            parts = zero.fp32_groups_gradient_flat_partition
            return lambda one: parts[one.group].narrow(0, one.offset, one.size)
        if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
            return lambda one: one.flat.grad.narrow(0, one.offset, one.size)  # type: ignore[union-attr]
        if hasattr(zero, "get_fp32_grad_partitions"):  # ZeRO 3
            of_group = zero.get_fp32_grad_partitions()
            return lambda one: of_group[one.group][one.index]
        return lambda one: zero.averaged_gradients[one.group][one.index]

    @torch.no_grad()
    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        flats = [flat for group in optimizer.param_groups for flat in group["params"]]
        for flat in flats:
            if self._factor is None:  # torch's optimizers leave out what has no gradient
                self._hidden.append((flat, flat.grad))
                flat.grad = None
            else:
                flat.grad.mul_(self._factor)

    @torch.no_grad()
    def _after_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._factor is None:
            for flat, gradient in self._hidden:
                flat.grad = gradient
            self._hidden.clear()
            return
        self._updated = True
        updated = {id(flat) for group in optimizer.param_groups for flat in group["params"]}
        named = [(one.name, one.weight) for one in self._fragments.trainable if one.size and id(one.flat) in updated]
        self._after_step(named)
