"""Our linear cross-entropy against torch's, forward and backward: processor time, and errors against float64.

    python benchmarks/linear_cross_entropy.py [--tokens N] [--width D] [--vocab V] [--rounds N]

Alternating rounds on one thread; processor time, so that other work on the machine counts little. The last line printed
is one JSON object: medians in seconds, the loss, and relative errors of the two gradients.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions, functional

from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.losses.next_token import loss_for

Result = tuple[float, Tensor, Tensor]  # the loss, and its gradients w.r.t. hidden states and weight


def candidates(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Callable[[], Result]]:
    """Ours as training compiles it, torch's in chunks, and torch's on whole logits."""
    loss = loss_for(compile=True)

    def ours(h: Tensor, w: Tensor) -> Tensor:
        outputs = VocabularyOutputs(h[None], w, whole_vocabulary(w.size(0)))
        return loss(outputs, Batch(targets[None], targets[None])).sum

    def chunked(h: Tensor, w: Tensor) -> Tensor:
        options = LinearCrossEntropyOptions()
        return functional.linear_cross_entropy(h, w, targets, reduction="sum", options=options)

    def whole(h: Tensor, w: Tensor) -> Tensor:
        return functional.linear_cross_entropy(h, w, targets, reduction="sum")

    def run(function: Callable[[Tensor, Tensor], Tensor]) -> Result:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = function(h, w)
        total.backward()
        assert h.grad is not None
        assert w.grad is not None
        return total.item(), h.grad, w.grad

    named = {"ours": ours, "torch, chunked": chunked, "torch, whole logits": whole}
    return {name: lambda function=function: run(function) for name, function in named.items()}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"cpu": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    for dtype in (torch.bfloat16, torch.float32):
        draw = torch.Generator().manual_seed(0)
        hidden = torch.randn(args.tokens, args.width, generator=draw).to(dtype)
        weight = (torch.randn(args.vocab, args.width, generator=draw) * 0.02).to(dtype)
        targets = torch.randint(0, args.vocab, (args.tokens,), generator=draw)
        exact = candidates(hidden.double(), weight.double(), targets)["torch, whole logits"]()
        named = candidates(hidden, weight, targets)
        found = {name: function() for name, function in named.items()}  # compiles, too
        times: dict[str, list[float]] = {name: [] for name in named}
        for _ in range(args.rounds):
            for name, function in named.items():
                started_at = time.process_time()
                function()
                times[name].append(time.process_time() - started_at)
        report[str(dtype)] = {
            name: {
                "s": statistics.median(times[name]),
                "loss": loss,
                "exact_loss": exact[0],
                "error_hidden": error(h, exact[1]),
                "error_weight": error(w, exact[2]),
            }
            for name, (loss, h, w) in found.items()
        }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
