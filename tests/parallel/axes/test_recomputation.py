"""Recomputation and compiled blocks change only memory and speed. Recomputation keeps the bytes of its formula."""

import math
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from layout_runs import (
    LAUNCH_TIMEOUT_S,
    MODEL,
    MODERN,
    SEQ_LEN,
    SEQUENCES,
    assert_same_continuations,
    largest_difference,
    launch,
    run_of,
)
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.model.config import ModelConfig
from gpt.model.gpt import Block
from gpt.model.masks import AttentionMask
from gpt.model.segment_attention import segment_attention
from parallel.axes.recomputation import wrap_block
from parallel.layout.config import ParallelConfig

pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
ONE_HEAD = {**MODERN, "n_layers": 1, "n_kv_heads": 1}
KEPT = [("gpt3", 1, 1), ("gpt3", 2, 2), ("gpt3", 2, 1), ("modern", 2, 2)]  # family, tensor ranks, shares of a sequence
RECOMPUTE = ("none", "selective", "full")
COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()
# With compiled blocks; a step is of 2 micro-batches or more
COMPILED = {
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2, dualpipev": (2, {"pipeline": 2, "schedule": "dualpipev"}),
    "data 2, zero 3, selective": (2, {"data": 2, "zero_stage": 3, "recompute": "selective"}),
    "tensor 2, selective, whole sequences": (
        2,
        {"tensor": 2, "recompute": "selective", "sequence_parallel": False},
    ),
    "tensor 2 x data 2, full": (4, {"tensor": 2, "data": 2, "recompute": "full"}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [run_of("one", 1, {}), run_of("modern, one", 1, {}, model=MODERN)]
    selective = {"recompute": "selective"}
    for name, world_size, parallel in (
        ("one", 1, {}),
        ("data 2, zero 3", 2, {"data": 2, "zero_stage": 3}),
        ("tensor 2 x pipeline 2", 4, {"tensor": 2, "pipeline": 2}),
    ):
        runs.append(run_of(f"selective, {name}", world_size, {**parallel, **selective}))
    runs.append(run_of("modern, selective, tensor 2", 2, {"tensor": 2, **selective}, model=MODERN))
    for family, tensor, shares in KEPT:
        keys = {"tensor": tensor, "precision": "bf16", "sequence_parallel": shares == tensor}
        model = {**(MODERN if family == "modern" else {}), "n_layers": 2}
        name = f"kept, {family}, {tensor}, {shares}"
        runs.append(run_of(name, tensor, keys, model=model, steps=1, measure_kept=RECOMPUTE))
    if COMPILER:
        runs.append(
            run_of(
                "compiled, selective",
                2,
                {"tensor": 2, "compile": True, **selective},
                model=ONE_HEAD,
                steps=3,
                generate=True,
            )
        )
        runs.append(run_of("one layer, one", 1, {}, model=ONE_HEAD, steps=3, generate=True))
        for name, (world_size, parallel) in COMPILED.items():
            runs.append(run_of(f"compiled, {name}", world_size, {"compile": True, **parallel}, steps=3))
    return launch(tmp_path_factory.mktemp("recomputation"), runs, timeout_s=LAUNCH_TIMEOUT_S)


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layouts_equal_one_process(results, name):
    ours, reference = results[f"compiled, {name}"], results["one"]
    assert ours["compiled_graphs"] == ours["compiled_in_first_step"] > 0, "later steps compile nothing"
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"][:3]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"][:3]) < 1e-4


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_compiled_modern_blocks_with_copied_key_value_heads_and_selective_recomputation(results):
    ours, reference = results["compiled, selective"], results["one layer, one"]
    assert_same_continuations(ours["greedy"], reference["greedy"])
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4


@pytest.mark.parametrize("name", ["one", "data 2, zero 3", "tensor 2 x pipeline 2", "modern"])
def test_selective_recomputation_changes_nothing(results, name):
    ours = results["modern, selective, tensor 2" if name == "modern" else f"selective, {name}"]
    reference = results["modern, one" if name == "modern" else "one"]
    if name == "one":
        assert ours["losses"] == reference["losses"]
        assert ours["final_weights"] == reference["final_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4 * (1 if name != "modern" else 10)


def test_recomputation_keeps_what_the_formulas_say(results):
    """Bytes per token and layer in bf16, measured as the storages alive after a block has run.

    docs/guides/training/memory_and_overlap.md has the formulas.
    """
    for family, tensor, shares in KEPT:
        config = ModelConfig(**{**MODEL, **(MODERN if family == "modern" else {})})
        d, kv, ff = config.d_model, config.kv_heads * config.d_head, config.ff_width
        wide = 2 if family == "modern" else 1  # gate and up
        products = d + 2 * kv + d + wide * ff  # q, k, v, attention's own output, first half of the MLP
        statistics = 4 * config.n_heads / tensor  # attention's log-sum-exp, fp32
        formula = {"full": 2 * d / shares, "selective": 2 * (2 * d / shares + products / tensor) + statistics}
        kept = {
            way: kept_bytes / (SEQUENCES * SEQ_LEN)
            for way, kept_bytes in results[f"kept, {family}, {tensor}, {shares}"]["kept_bytes"].items()
        }
        assert kept["full"] < kept["selective"] < kept["none"]
        assert math.isclose(kept["full"], formula["full"])
        assert math.isclose(kept["selective"], formula["selective"])
        if family == "gpt3":
            assert math.isclose(kept["none"], (24 / tensor + 4 / shares + 4) * d, rel_tol=0.03)


class _Calls(TorchDispatchMode):
    """Counts calls of the attention kernel for segments."""

    def __init__(self):
        super().__init__()
        self.forward = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.forward += function is segment_attention._opoverload
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "calls"), [("none", 1), ("selective", 1), ("full", 2)])
def test_attention_inside_documents_runs_again_only_under_full(recompute, calls):
    config = ModelConfig(**MODEL)
    block = wrap_block(Block(config), ParallelConfig(recompute=recompute, precision="fp32"))
    x = torch.randn(2, 8, config.d_model, requires_grad=True)
    mask = AttentionMask(segment_ids=torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0] * 8]))
    with _Calls() as counted:
        block(x, None, mask).sum().backward()
    assert counted.forward == calls
