"""Products in fp8 against float64 products of rounded numbers, between tensor ranks, and in the training of layouts."""

import pytest
import torch
from fp8_ranks import part_of, product_in_parts, whole
from layout_runs import LAUNCH_TIMEOUT_S, largest_difference, launch, run_of
from rank_server import rank_server
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from parallel.axes.fp8 import E4M3, E5M2, Fp8Linear, Fp8Product, _scales, use_fp8_products
from parallel.axes.recomputation import wrap_block
from parallel.layout.config import ParallelConfig

pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
BF16 = 2.0**-8  # the largest relative error of rounding to bf16
MODEL = {"d_model": 64, "n_layers": 2}
FP8 = {"precision": "fp8", "fp8_min_width": 64}
LAYOUTS = {
    "tensor 2, selective": (2, {"tensor": 2, "recompute": "selective"}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "pipeline 2": (2, {"pipeline": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [run_of("bf16", 1, {"precision": "bf16"}, model=MODEL), run_of("one", 1, FP8, model=MODEL)]
    runs += [run_of(name, size, {**FP8, **parallel}, model=MODEL) for name, (size, parallel) in LAYOUTS.items()]
    return launch(tmp_path_factory.mktemp("fp8"), runs, timeout_s=LAUNCH_TIMEOUT_S)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_train_like_one_process(results, name):
    """bf16 itself differs by 1e-4 of the loss and 2e-3 of the norm between one process and two tensor ranks."""
    ours, reference = results[name], results["one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-3
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-2
    assert abs(ours["evaluated"] - reference["evaluated"]) < 1e-3 * reference["evaluated"]


def test_data_ranks_give_the_bits_of_one_process(results):
    """Each micro-batch has its own scales, and its rows are the same on one rank and on two."""
    assert results["data 2, zero 3"]["losses"] == results["one"]["losses"]


def test_the_losses_are_near_those_of_bf16(results):
    ours, reference = results["one"], results["bf16"]
    assert ours["losses"] != reference["losses"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 2e-3
    assert largest_difference(ours["norms"], reference["norms"]) < 2e-2


def rounded(x, dtype):
    """x in float64, rounded to fp8 numbers times a power of two that just keeps its largest element in range."""
    x = x.detach().double()
    scale = 2.0 ** torch.floor(torch.log2(torch.finfo(dtype).max / x.abs().max()))
    return (x * scale).to(dtype).double() / scale


def assert_near(ours, reference):
    """Equal, except for the rounding of the result to bf16, and of its sum to fp32."""
    assert ours.dtype == torch.bfloat16
    assert float((ours.double() - reference).abs().max()) <= BF16 * float(reference.abs().max())


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e4])
def test_a_product_and_its_gradients_equal_float64_products_of_rounded_numbers(size):
    generator = torch.Generator().manual_seed(0)
    x, w, b, g = (torch.randn(s, generator=generator).bfloat16() for s in ((2, 16, 64), (48, 64), (48,), (2, 16, 48)))
    x, g = x * size, (g * size).transpose(0, 1).contiguous().transpose(0, 1)  # not row by row in memory
    y = Fp8Product()(x.requires_grad_(), w.requires_grad_(), b.requires_grad_())
    y.backward(g)
    xs, gs = rounded(x.flatten(0, 1), E4M3), rounded(g.flatten(0, 1), E5M2)
    assert_near(y.detach().flatten(0, 1), xs @ rounded(w, E4M3).T + b.detach().double())
    assert_near(x.grad.flatten(0, 1), gs @ rounded(w, E4M3))
    assert_near(w.grad, gs.T @ xs)
    assert_near(b.grad, g.double().sum((0, 1)))


def test_scales_are_powers_of_two_that_keep_the_largest_element_in_range():
    largest = torch.tensor([1.0, 447.0, 448.0, 449.0, 3e-5, 6e4])
    for dtype in (E4M3, E5M2):
        scales = _scales(largest, dtype).double()
        assert torch.equal(torch.log2(scales), torch.log2(scales).round())
        room = torch.finfo(dtype).max / (largest.double() * scales)
        assert ((room >= 1) & (room < 2.001)).all()


def test_zeros_stay_zeros_and_a_number_that_is_none_spreads():
    x, w = torch.zeros(16, 32, dtype=torch.bfloat16), torch.ones(16, 32, dtype=torch.bfloat16, requires_grad=True)
    assert not Fp8Product()(x, w).any()
    x[0, 0] = float("nan")
    assert Fp8Product()(x, w).isnan().all()


def test_without_gradients_products_stay_in_bf16():
    x, w = (torch.randn(16, 32, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (1, 2))
    with torch.no_grad():
        assert torch.equal(Fp8Product()(x, w), functional.linear(x, w))
    assert not torch.equal(Fp8Product()(x, w.requires_grad_()).detach(), functional.linear(x, w).detach())


def test_tensor_ranks_share_the_scale_of_the_whole_tensor(tmp_path):
    """Only the second rank has the largest element: the first must round its own, much smaller ones to 0."""
    words = {"nproc": 2, "logs": tmp_path / "logs", "timeout_s": 120}
    rank_server().run_ranks(f"fp8_ranks:{product_in_parts.__name__}", [tmp_path], **words)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for way, dim in (("rows", 0), ("columns", 1)):
            x, weight, grad = whole(way)
            xs, ws, gs = rounded(x, E4M3), rounded(weight, E4M3).chunk(2, dim=dim)[rank], rounded(grad, E5M2)
            if way == "rows":
                gs = gs.chunk(2, dim=1)[rank]
            else:
                xs = xs.chunk(2, dim=1)[rank]
            for ours, reference in zip(found[way], (xs @ ws.T, gs @ ws, gs.T @ xs), strict=True):
                assert_near(ours, reference)
            if rank == 0:
                assert not found[way][0].any()
                assert part_of(way, rank)[1].any()


class _Products(TorchDispatchMode):
    """Counts fp8 products."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._scaled_mm.default
        return function(*args, **(kwargs or {}))


def test_recomputation_changes_no_bit_and_selective_keeps_products():
    found, counts = {}, {}
    for recompute in ("none", "selective", "full"):
        torch.manual_seed(0)
        model = GPT(ModelConfig(vocab_size=64, n_ctx=16, n_layers=1, d_model=32, n_heads=2)).bfloat16()
        use_fp8_products(model, None)
        assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 6
        block = wrap_block(model.blocks["0"], ParallelConfig(recompute=recompute, precision="fp8"))
        x = torch.randn(2, 16, 32, dtype=torch.bfloat16, requires_grad=True)
        with _Products() as products:
            block(x).square().sum().backward()
        found[recompute] = [x.grad, *(parameter.grad for parameter in model.blocks["0"].parameters())]
        counts[recompute] = products.count
    for recompute in ("selective", "full"):
        assert all(map(torch.equal, found[recompute], found["none"]))
    # 6 forward and 12 backward. Nothing needs the last product of the block again.
    assert counts == {"none": 18, "selective": 18, "full": 23}
