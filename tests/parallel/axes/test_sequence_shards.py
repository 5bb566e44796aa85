"""Sequences between three real ranks: outputs and gradients against sums and slices of the whole."""

import pytest
import torch
from rank_server import rank_server
from sequence_ranks import LENGTH, PAIR, chunks, inputs

SIZE = 3
TIMEOUT_S = 120
pytestmark = pytest.mark.timeout(TIMEOUT_S + 30)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By rank: outputs and gradients by function and number of sequences."""
    folder = tmp_path_factory.mktemp("sequences")
    rank_server().run_ranks(
        "sequence_ranks:exchange", [SIZE, folder], nproc=SIZE, logs=folder / "logs", timeout_s=TIMEOUT_S
    )
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(SIZE)]


def share(x, rank):
    return x[:, 2 * rank : 2 * (rank + 1)]


@pytest.mark.parametrize("sequences", [1, 2])
def test_gathered_shares_give_each_rank_its_part_of_the_summed_gradients(found, sequences):
    of_rank = [inputs(SIZE, rank, sequences) for rank in range(SIZE)]
    whole = torch.cat([share(x, rank) for rank, (x, _) in enumerate(of_rank)], dim=1)
    summed = sum(weights for _, weights in of_rank)
    for rank in range(SIZE):
        y, grad = found[rank][f"gathered {sequences}"]
        assert torch.equal(y, whole)
        torch.testing.assert_close(grad, share(summed, rank), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sequences", [1, 2])
def test_a_repeated_computation_needs_no_sum_of_gradients(found, sequences):
    for rank in range(SIZE):
        y, grad = found[rank][f"collected {sequences}"]
        assert torch.equal(y, found[rank][f"gathered {sequences}"][0])
        assert torch.equal(grad, share(inputs(SIZE, rank, sequences)[1], rank))


@pytest.mark.parametrize("sequences", [1, 2])
def test_reduced_parts_are_shares_of_the_sum_and_their_gradients_are_gathered(found, sequences):
    of_rank = [inputs(SIZE, rank, sequences) for rank in range(SIZE)]
    summed = sum(x for x, _ in of_rank)
    gathered = torch.cat([weights[:, :2] for _, weights in of_rank], dim=1)
    for rank in range(SIZE):
        y, grad = found[rank][f"reduced {sequences}"]
        torch.testing.assert_close(y, share(summed, rank), rtol=1e-6, atol=1e-6)
        assert torch.equal(grad, gathered)


@pytest.mark.parametrize("sequences", [1, 2])
def test_ranks_that_hold_the_whole_sequence_add_up_parts_forward_and_gradients_backward(found, sequences):
    of_rank = [inputs(SIZE, rank, sequences) for rank in range(SIZE)]
    whole, weights = (sum(tensors) for tensors in zip(*of_rank, strict=True))
    for rank, (x, own) in enumerate(of_rank):
        for name in ("gathered", "kept"):
            y, grad = found[rank][f"whole, {name} {sequences}"]
            assert torch.equal(y, x)
            torch.testing.assert_close(grad, weights, rtol=1e-6, atol=1e-6)
            assert torch.equal(grad, found[0][f"whole, {name} {sequences}"][1]), "replicas must keep the same bits"
        y, grad = found[rank][f"whole, reduced {sequences}"]
        torch.testing.assert_close(y, whole, rtol=1e-6, atol=1e-6)
        assert torch.equal(y, found[0][f"whole, reduced {sequences}"][0])
        assert torch.equal(grad, own)
        y, grad = found[rank][f"whole, collected {sequences}"]
        assert torch.equal(y, x)
        assert torch.equal(grad, own)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_chunks_are_added_up_on_the_rank_that_keeps_them(found, kind):
    """Against sums in float64: one rounding in bf16, one per addition in fp32."""
    parts = [chunks(SIZE, rank, kind).double() for rank in range(SIZE)]
    exact, sizes = sum(parts), sum(part.abs() for part in parts)
    bound = (0.501 * exact.abs() if kind == torch.bfloat16 else sizes) * torch.finfo(kind).eps
    for rank in range(SIZE):
        kept = slice(rank * LENGTH, (rank + 1) * LENGTH)
        assert ((found[rank][f"all {kind}"] - exact[kept]).abs() <= bound[kept]).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_pair_of_ranks_gets_the_bits_of_torchs_reduce_scatter(found, kind):
    for rank in PAIR:
        ours, of_torch = found[rank][f"pair {kind}"]
        assert torch.equal(ours, of_torch)


def test_whoever_watches_operators_sees_one_with_the_same_bits(found):
    """Selective recomputation and the counter of messages watch; other eager code skips the operator's dispatch."""
    for rank in range(SIZE):
        assert torch.equal(found[rank]["watched"], found[rank]["reduced 2"][0])
        assert [name for name in found[rank]["operators"] if "scatter" in name or "all" in name] == [
            "triaxial::reduce_scatter"
        ]
        assert torch.equal(found[rank]["whole, watched"], found[rank]["whole, reduced 2"][0])
        assert [name for name in found[rank]["whole, operators"] if "all" in name] == ["_c10d_functional::all_reduce"]
