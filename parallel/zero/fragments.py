"""Where DeepSpeed's ZeRO keeps the fp32 weights, the optimizer's state and the gradients of each parameter.

ZeRO flattens the parameters of a group and cuts the flat tensor into equal parts, one per data rank. ZeRO 3 cuts each
parameter instead. Either way a rank updates one range of each flattened parameter, its fragment, which may be empty.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.model.config import ModelConfig
from gpt.model.initialisation import fill, start_of
from parallel.layout.mesh import Mesh
from parallel.zero.setup import is_partitioned


@dataclass(frozen=True)
class Fragment:
    """The elements `start` to `start + len(weight)` of a flattened parameter, which this rank updates or, if the
    parameter is frozen, keeps in fp32."""

    name: str  # canonical
    parameter: nn.Parameter
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    weight: Tensor  # fp32
    flat: Tensor | None = None  # the optimizer's tensor that `weight` is a part of; None if frozen
    offset: int = 0  # of `weight` in `flat`
    group: int = 0  # of ZeRO's lists
    index: int = 0  # in the group

    @property
    def size(self) -> int:
        return self.weight.numel()


class ZeroFragments:
    """The fragments of one stage on this rank, in the order of its parameters.

    `zero`: DeepSpeed's optimizer around `optimizer`, which is torch's; without one, every parameter is frozen.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        zero: Any,
        optimizer: torch.optim.Optimizer | None,
        *,
        state_names: tuple[str, ...],
        mesh: Mesh,
    ) -> None:
        self.zero, self.optimizer, self.state_names, self.mesh = zero, optimizer, state_names, mesh
        self.group = mesh.data.get_group()
        self.all = [self._find(name, parameter) for name, parameter in parameters]
        self.trainable = [fragment for fragment in self.all if fragment.flat is not None]
        self.steps = 0  # updates so far, which Adam's bias correction needs

    def _find(self, name: str, parameter: Any) -> Fragment:
        if not parameter.requires_grad:
            return self._frozen(name, parameter)
        if is_partitioned(parameter):
            group, offset, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
            flat = self.zero.fp32_partitioned_groups_flat[group]
            index = next(i for i, one in enumerate(self.zero.fp16_groups[group]) if one is parameter)
            start, size = self._range(parameter.ds_numel)
            shape = tuple(parameter.ds_shape)
        else:
            assert self.optimizer is not None
            shape, mapping = tuple(parameter.shape), parameter._hp_mapping
            if mapping is None:  # other ranks hold all of it
                some = self.optimizer.param_groups[0]["params"][0]
                return Fragment(name, parameter, shape, 0, some.detach().narrow(0, 0, 0), some)
            group, index = mapping.param_group_index, parameter._index_in_param_group
            flat = self.optimizer.param_groups[group]["params"][0]
            start, size = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            offset = mapping.hp_fragment_address.start
        weight = flat.detach().narrow(0, offset, size)
        return Fragment(name, parameter, shape, start, weight, flat, offset, group, index)

    def _frozen(self, name: str, parameter: Any) -> Fragment:
        """ZeRO keeps frozen parameters in the compute dtype. Each rank keeps an fp32 part for checkpoints."""
        if is_partitioned(parameter):
            shape, data = tuple(parameter.ds_shape), parameter.ds_tensor.data
            start, size = self._range(parameter.ds_numel)
            held = data.narrow(0, 0, size)
        else:
            shape = tuple(parameter.shape)
            start, size = self._range(parameter.numel())
            held = parameter.data.view(-1).narrow(0, start, size)
        return Fragment(name, parameter, shape, start, held.float())  # the same memory if it is fp32

    def _range(self, n_elements: int) -> tuple[int, int]:
        """Start and length of this rank's part of `n_elements` that are cut evenly."""
        length = -(-n_elements // dist.get_world_size(self.group))
        start = min(dist.get_rank(self.group) * length, n_elements)
        return start, min(length, n_elements - start)

    @torch.no_grad()
    def initialise(self, config: ModelConfig, *, seed: int) -> None:
        """Fill the fp32 weights with the bits that one process would have. Does not change the compute weights."""
        for one in self.all:
            fill_range(one.weight, one.name, one.start, shape=one.shape, config=config, seed=seed)

    @torch.no_grad()
    def update_compute_weights(self) -> None:
        """Round the fp32 weights into the weights that compute. Collective over the data ranks."""
        if any(is_partitioned(fragment.parameter) for fragment in self.all):
            self._update_partitions()
            return
        if self.zero is not None:
            self.zero.update_lp_params()
        for fragment in self.all:
            if fragment.flat is None:
                fragment.parameter.data.copy_(self.whole(fragment, fragment.weight))

    def free_gathered(self) -> None:
        """Under ZeRO 3, free all gathered weights but the small ones that stay. Collective over the data ranks."""
        offload = getattr(self.zero, "parameter_offload", self.zero)
        offload.empty_partition_cache()
        if offload.persistent_parameters:
            offload.persistent_parameters[0].all_gather(offload.persistent_parameters)

    def _update_partitions(self) -> None:
        for fragment in self.all:
            partition: Any = fragment.parameter
            partition.ds_tensor.data.narrow(0, 0, fragment.size).copy_(fragment.weight)
        self.free_gathered()

    @torch.no_grad()
    def whole(self, fragment: Fragment, piece: Tensor) -> Tensor:
        """The whole fp32 tensor, of which each rank gives its `piece`, on the device. Collective over the data ranks.

        Sums integers, because adding 0.0 to -0.0 would change a bit.
        """
        bits = torch.zeros(math.prod(fragment.shape), dtype=torch.int32, device=self.mesh.device)
        bits.narrow(0, fragment.start, fragment.size).copy_(piece.contiguous().view(torch.int32))
        if dist.get_world_size(self.group) > 1:
            dist.all_reduce(bits, group=self.group)
        return bits.view(torch.float32).view(fragment.shape)

    def state_of(self, fragment: Fragment) -> dict[str, Tensor]:
        """The optimizer's state of a fragment by name; none if it is frozen. Allocated at the first call."""
        if fragment.flat is None or self.optimizer is None:
            return {}
        self.allocate_state()
        state = self.optimizer.state[fragment.flat]
        return {name: state[name].narrow(0, fragment.offset, fragment.size) for name in self.state_names}

    def allocate_state(self) -> None:
        """Zeros for everything trainable, which is what torch's optimizers start from."""
        if self.optimizer is None or self.optimizer.state:
            return
        for flat in self._flats():
            state = {name: torch.zeros_like(flat.detach()) for name in self.state_names}
            if isinstance(self.optimizer, torch.optim.AdamW):
                state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            self.optimizer.state[flat] = state

    def set_steps(self, steps: int) -> None:
        """Set the count of updates, also where torch's optimizer keeps it."""
        self.steps = steps
        self.allocate_state()
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(steps)

    def _flats(self) -> list[Tensor]:
        """The optimizer's flat tensors on this rank, each once."""
        if hasattr(self.zero, "fp32_partitioned_groups_flat"):
            return list(self.zero.fp32_partitioned_groups_flat)
        assert self.optimizer is not None
        return [flat for group in self.optimizer.param_groups for flat in group["params"]]


def fill_range(out: Tensor, name: str, start: int, *, shape: tuple[int, ...], config: ModelConfig, seed: int) -> None:
    """Fill `out` (size,), the elements from `start` on of a flattened parameter of `shape`, as initialisation does."""
    columns = shape[-1]
    matrix = (math.prod(shape[:-1]), columns)
    for begin, stop in rows_of(start, out.numel(), columns):
        rows = torch.arange(begin // columns, -(-stop // columns), device=out.device)
        first = begin % columns
        width = torch.arange(first, min(columns, first + stop - begin), device=out.device)
        piece = out.narrow(0, begin - start, stop - begin)
        fill(piece, name, start_of(name, config), seed=seed, shape=matrix, indices=[rows, width])


def rows_of(start: int, size: int, columns: int) -> Iterator[tuple[int, int]]:
    """Cut a range of a flattened matrix into boxes: the end of a row, whole rows, and the beginning of a row."""
    stop = start + size
    first, last = -(-start // columns) * columns, stop // columns * columns
    if first > last:  # inside one row
        yield start, stop
        return
    for begin, end in ((start, first), (first, last), (last, stop)):
        if begin < end:
            yield begin, end
