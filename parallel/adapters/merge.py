"""Read the weights of a model from a checkpoint with adapters: those of its base, with the adapters merged into them.

A `chain` is a checkpoint and its bases, see parallel.adapters.base.with_bases. Without adapters it is one checkpoint,
whose weights are read as they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gpt.adapters.config import adapter_names, adapter_of
from gpt.adapters.low_rank import merged
from parallel.agreement import run_on_all_ranks
from parallel.axes.gradients import local
from parallel.axes.initialisation import held_indices
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.load import load_checkpoint, read_tensors

Chain = Sequence[Checkpoint]


def load_merged(chain: Chain, tensors: Mapping[str, Tensor], *, rounded: bool = False) -> None:
    """Load weights in place, of any layout, with the adapters merged into them. Collective over all ranks.

    `tensors` and `rounded` as for `load_checkpoint`, and errors.
    """
    left = dict(tensors)
    for depth, checkpoint in enumerate(chain):
        is_last = depth == len(chain) - 1
        own = {name: tensor for name, tensor in left.items() if is_last or name in checkpoint.index}
        load_checkpoint(checkpoint, tensors=own, rounded=rounded)
        run_on_all_ranks(partial(_merge, chain[: depth + 1], own), None, path=checkpoint.path)
        for name in own:
            del left[name]


def read_merged(chain: Chain, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Read whole weights to the CPU, one at a time, with the adapters merged into them. ConfigError: one is missing.

    Those with adapters come in fp32, others in the dtype in which they were saved.
    """
    for wanted in names:
        depth = next((i for i, checkpoint in enumerate(chain) if wanted in checkpoint.index), len(chain) - 1)
        changed = any(adapter_names(wanted)[0] in checkpoint.index for checkpoint in chain[: depth + 1])
        for name, stored in read_tensors(chain[depth], [wanted]):
            tensor = stored.to(torch.promote_types(stored.dtype, torch.float32)) if changed else stored
            _merge(chain[: depth + 1], {name: tensor})
            yield name, tensor
            del stored, tensor


@torch.no_grad()
def _merge(chain: Chain, weights: Mapping[str, Tensor]) -> None:
    """Add B A of the adapters of each checkpoint to weights that the last one holds, in place, the last one's first.

    Communicates nothing: each rank reads the small A and B of the weights that it holds. A weight that is held in bf16
    is read again as it was saved, so that it is rounded once.
    """
    adapters = [(one, adapter) for one in reversed(chain) if (adapter := adapter_of(one.state)) is not None]
    for name, weight in weights.items():
        names, shard = adapter_names(name), local(weight)
        own = [(one, adapter) for one, adapter in adapters if names[0] in one.index]
        if not own or not name.endswith(".weight") or not shard.numel():
            continue
        (rows, columns), wide = held_indices(weight), torch.promote_types(shard.dtype, torch.float32)
        total = shard
        if shard.dtype != wide:
            ((_, stored),) = read_tensors(chain[-1], [name])
            total = stored[rows.cpu()][:, columns.cpu()].to(shard.device, wide)
        for one, adapter in own:
            a, b = (tensor.to(shard.device) for _, tensor in read_tensors(one, names))
            total = merged(total, a[:, columns], b[rows], scale=adapter.scale)
        shard.copy_(total)
