"""The chunked cross-entropy against torch's own, in float64, with padding, ignored targets and a sharded vocabulary."""

import shutil
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import gpt.losses.linear_cross_entropy
from gpt.losses.base import VocabShard, VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.losses.next_token import loss_for, next_token_loss

COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()
IN_PLACE = [
    None,
    gpt.losses.linear_cross_entropy.exponentials_in_place,
]  # torch's kernels, and the function that is compiled in training, here uncompiled


def inputs(*, vocab=37, padded=48, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 50, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(padded, 16, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocab, (3, 50), generator=generator)
    targets[0, :7] = IGNORE
    return hidden, weight, targets


def reference(hidden, weight, targets, vocab, *, z_loss=0.0):
    logits = (hidden @ weight.T)[..., :vocab]
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss + z_loss * z_reference(logits, targets) if z_loss else loss


def z_reference(logits, targets):
    """The sum of log^2 Z, as PaLM's section 5 has it."""
    return (logits.exp().sum(-1).log() ** 2)[targets != IGNORE].sum()


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("in_place", IN_PLACE)
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_value_and_gradients_equal_torch(monkeypatch, chunk, in_place, z_loss):
    monkeypatch.setattr(gpt.losses.linear_cross_entropy, "_equal_chunk", lambda n, weight, rows, in_place: chunk)
    hidden, weight, targets = inputs()
    totals = next_token_loss(hidden, weight, targets, whole_vocabulary(37), z_loss=z_loss, in_place=in_place)
    (3 * totals.sum).backward()  # the gradient must follow the factor
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = reference(hidden, weight, targets, 37, z_loss=z_loss)
    (3 * expected).backward()
    assert totals.count == 143
    torch.testing.assert_close(totals.reported, reference(hidden, weight, targets, 37).detach(), rtol=1e-12, atol=0)
    assert not totals.reported.requires_grad
    assert totals.metrics.keys() == ({"z_loss"} if z_loss else set())
    if z_loss:
        expected_z = z_loss * z_reference((hidden @ weight.T)[..., :37], targets).detach()
        torch.testing.assert_close(totals.metrics["z_loss"], expected_z, rtol=1e-12, atol=0)
    torch.testing.assert_close(totals.sum, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-10, atol=1e-12)
    assert not weight.grad[37:].any(), "padding rows learn nothing"


@pytest.mark.parametrize("ignored", [0.0, 0.6, 1.0])
def test_leaving_out_what_does_not_count_changes_nothing(ignored):
    hidden, weight, targets = inputs()
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < ignored] = IGNORE
    found = []
    for few_counted in (False, True):
        hidden.grad = weight.grad = None
        totals = next_token_loss(hidden, weight, targets, whole_vocabulary(37), z_loss=1e-3, few_counted=few_counted)
        totals.sum.backward()
        found.append((totals.sum, totals.count, totals.reported, totals.metrics["z_loss"], hidden.grad, weight.grad))
    for whole, few in zip(*found, strict=True):
        torch.testing.assert_close(few, whole, rtol=1e-12, atol=1e-13)


def test_the_head_runs_on_counted_tokens_alone():
    hidden, weight, targets = inputs()
    targets[1:] = IGNORE
    with FlopCounterMode(display=False) as counter:
        loss = loss_for(compile=False, few_counted=True)
        loss(VocabularyOutputs(hidden, weight, whole_vocabulary(37)), Batch(torch.empty(0), targets)).sum.backward()
    assert counter.get_total_flops() == 3 * 2 * 43 * 16 * 48, "43 of 150 targets count"


def test_a_retained_graph_can_be_walked_again():
    """As pipelines do that take gradients of inputs first and of weights later."""
    hidden, weight, targets = inputs()
    total = next_token_loss(hidden, weight, targets, whole_vocabulary(37)).sum
    expected = torch.autograd.grad(2 * reference(hidden, weight, targets, 37), (hidden, weight))
    two = torch.tensor(2.0, dtype=torch.float64)
    (first,) = torch.autograd.grad(total, hidden, two, retain_graph=True)
    (second,) = torch.autograd.grad(total, weight, two, retain_graph=True)
    (third,) = torch.autograd.grad(total, weight, 3 * two)
    torch.testing.assert_close(first, expected[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second, expected[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(third, 3 * expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("in_place", IN_PLACE)
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_vocabulary_shards_equal_the_whole(in_place, shift, z_loss):
    """Three holders of 16 rows each, the last one partly padding, talking through a barrier as ranks would; also when
    one holder's logits are far above all others."""
    hidden, weight, targets = inputs()
    with torch.no_grad():
        hidden[..., 0] = 1.0
        weight[:16, 0] += shift
    meeting, box, results = threading.Barrier(3), [None] * 3, [None] * 3

    def reduced(rank, x, op):
        box[rank] = x
        meeting.wait()
        y = op(torch.stack([*box]))
        meeting.wait()
        return y

    def work(rank):
        shard = VocabShard(
            start=16 * rank,
            vocab_size=37,
            max_rows=16,
            reduce_sum=lambda x: reduced(rank, x, lambda s: s.sum(0)),
            reduce_max=lambda x: reduced(rank, x, lambda s: s.max(0).values),
        )
        h = hidden.detach().clone().requires_grad_()
        w = weight.detach()[16 * rank : 16 * rank + 16].clone().requires_grad_()
        totals = next_token_loss(h, w, targets, shard, z_loss=z_loss, in_place=in_place)
        totals.sum.backward()
        results[rank] = totals.sum.detach(), h.grad, w.grad

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    expected = reference(hidden, weight, targets, 37, z_loss=z_loss)
    expected.backward()
    for total, _, _ in results:
        torch.testing.assert_close(total, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(r[1] for r in results), hidden.grad, rtol=1e-10, atol=1e-12 * (1 + shift))
    torch.testing.assert_close(torch.cat([r[2] for r in results]), weight.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("in_place", IN_PLACE)
@pytest.mark.parametrize("level", [-1.0, -0.5, 0.0, 40.0])
def test_z_loss_where_it_outweighs_the_softmax(in_place, level):
    """With the coefficient 1 the softmax is multiplied by 1 + 2 log Z: below 0, as good as 0, and far above."""
    hidden, weight, targets = inputs(vocab=48)
    with torch.no_grad():
        weight.mul_(1e-6)
        hidden[..., 0] = 1.0
        weight[:, 0] = level - torch.tensor(48.0).log()
    totals = next_token_loss(hidden, weight, targets, whole_vocabulary(48), z_loss=1.0, in_place=in_place)
    ours = torch.autograd.grad(totals.sum, (hidden, weight))
    expected = torch.autograd.grad(reference(hidden, weight, targets, 48, z_loss=1.0), (hidden, weight))
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).norm() <= 2e-3 * theirs.norm()


def test_evaluation_is_without_z_loss():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        totals = next_token_loss(hidden, weight, targets, whole_vocabulary(37), z_loss=0.3)
    assert totals.metrics == {}
    torch.testing.assert_close(totals.sum, reference(hidden, weight, targets, 37).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("compiled", "z_loss"),
    [(False, 0.0), (False, 1e-2), pytest.param(True, 1e-2, marks=pytest.mark.skipif(not COMPILER, reason="no g++"))],
)
def test_bf16_is_close_to_float64(compiled, z_loss):
    hidden, weight, targets = inputs(dtype=torch.bfloat16)
    totals = loss_for(compile=compiled, z_loss=z_loss)(
        VocabularyOutputs(hidden, weight, whole_vocabulary(37)), Batch(targets, targets)
    )
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = reference(*exact, targets, 37, z_loss=z_loss)
    expected.backward()
    assert totals.sum.dtype == torch.float32
    torch.testing.assert_close(totals.sum.double(), expected, rtol=5e-3, atol=0)
    totals.sum.backward()
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()


def test_all_targets_ignored_is_zero_not_nan():
    hidden, weight, targets = inputs()
    totals = next_token_loss(hidden, weight, torch.full_like(targets, IGNORE), whole_vocabulary(37))
    totals.sum.backward()
    assert totals.sum == 0
    assert totals.count == 0
    assert not hidden.grad.any()


@pytest.mark.parametrize("n", [1, 100, 2048, 2049, 8192])
@pytest.mark.parametrize("in_place", [False, True])
def test_chunks_are_of_almost_one_size(n, in_place):
    """So that compiled code meets one shape, and the last chunk is not a crumb."""
    weight = torch.empty(50_304, 8, dtype=torch.bfloat16, device="meta")
    chunk = gpt.losses.linear_cross_entropy._equal_chunk(n, weight, 50_257, in_place=in_place)
    count = -(-n // chunk)
    assert 0 <= count * chunk - n < count
    assert chunk * 50_304 * 2 <= 1 << 30


def test_chunks_bound_the_logits():
    for rows in (128, 50_304, 256_000):
        for device, budget in (("cpu", 64 << 20), ("cuda", 512 << 20)):
            chunk = gpt.losses.linear_cross_entropy.chunk_tokens(rows, torch.device(device))
            assert chunk % 64 == 0
            assert chunk == 64 or chunk * rows * 4 <= budget


def test_holders_of_unequal_shares_take_equal_chunks():
    """Each chunk is two reductions over all holders: 65,536 rows on 3 are 21,846, 21,846 and 21,844."""
    for in_place in (False, True):
        for n in (768, 2048, 4096):
            chunks = {
                gpt.losses.linear_cross_entropy._equal_chunk(
                    n, torch.empty(rows, 8, dtype=torch.bfloat16), 21_846, in_place=in_place
                )
                for rows in (21_846, 21_844)
            }
            assert len(chunks) == 1


def test_evaluation_computes_no_gradient():
    hidden, weight, targets = inputs()
    weight = torch.nn.Parameter(weight.detach())
    for grad_enabled, products in ((False, 1), (True, 3)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad_enabled):
            next_token_loss(hidden, weight, targets, whole_vocabulary(37))
        assert counter.get_total_flops() == products * 2 * 150 * 48 * 16


class Largest(TorchDispatchMode):
    """Records the largest storage that any operator's result had, by type and in all; bytes."""

    def __init__(self):
        super().__init__()
        self.by_type = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                size_bytes = tensor.untyped_storage().nbytes()
                self.by_type[tensor.dtype] = max(size_bytes, self.by_type.get(tensor.dtype, 0))
        return result

    @property
    def all_types(self):
        return max(self.by_type.values())


@pytest.mark.parametrize(
    ("device", "n", "in_place", "most"),
    [  # meta tensors have shapes alone: GPT-3's vocabulary, and as many tokens as a GPU's chunk holds 25 or 6 times
        ("meta", 65_536, None, 512 << 20),
        (
            "meta",
            65_536,
            gpt.losses.linear_cross_entropy.exponentials_in_place,
            2 << 30,
        ),  # fp32 in passing, unless compiled
        ("cpu", 2048, None, 64 << 20),
    ],
)
def test_no_tensor_holds_the_logits_of_all_tokens(device, n, in_place, most):
    """Forward and backward, by the tensors that are made."""
    vocab, d = 50_304, 16
    hidden = torch.zeros(1, n, d, dtype=torch.bfloat16, device=device, requires_grad=True)
    weight = torch.zeros(vocab, d, dtype=torch.bfloat16, device=device, requires_grad=True)
    targets = torch.zeros(1, n, dtype=torch.int64, device=device)
    with Largest() as made:
        totals = next_token_loss(hidden, weight, targets, whole_vocabulary(vocab), in_place=in_place)
        forward = made.all_types
        (2 * totals.sum).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert made.all_types == forward, "backward makes none that is larger"
    assert most / 2 < made.by_type[torch.float32] <= most
    assert made.all_types <= most < 2 * n * vocab / 3, "bytes of all logits in bf16"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_a_gpu_gives_the_value_and_gradients_of_float64_on_a_cpu(dtype, tolerance):
    exact = inputs()
    expected = reference(*exact, 37)
    expected.backward()
    hidden, weight = (x.detach().to("cuda", dtype).requires_grad_() for x in exact[:2])
    totals = next_token_loss(hidden, weight, exact[2].cuda(), whole_vocabulary(37))
    totals.sum.backward()
    assert totals.sum.item() == pytest.approx(expected.item(), rel=tolerance)
    for mine, theirs in ((hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        assert float((mine.cpu().double() - theirs).norm() / theirs.norm()) < tolerance
